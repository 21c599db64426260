"""From an image embedding and prompts to the logits of masks."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np

from structsam_export.runtime.features import EARLY, Features, embedding_of, named
from structsam_export.runtime.prompts import PROMPTS

if TYPE_CHECKING:
    from structsam_export.backends.base import Runner

# (features of one image, coords (P, K, 2), labels (P, K)) -> low-resolution logits (P, 4h, 4w), float32
Decoder = Callable[[Features, np.ndarray, np.ndarray], np.ndarray]
# (image (1, 3, S, S), box (1, 4) or None) -> features of that image, float32
Embed = Callable[[np.ndarray, "np.ndarray | None"], Features]


def decoder_feed(
    features: Features,
    coords: np.ndarray,
    labels: np.ndarray,
    masks: np.ndarray | None = None,
    *,
    hq_token_only: bool = False,
) -> dict[str, np.ndarray]:
    """The inputs of an exported decoder.

    An unused mask is zeros, not what lies in memory: graphs may multiply it by 0, which leaves NaN as it is.

    Args:
        features: of one image, float32.
        coords, labels: float32 (P, K, 2) in encoder pixels and int64 (P, K), padding points included.
        masks: logits (P, 1, 4h, 4w) float32 of an earlier call.
        hq_token_only: SAM-HQ's own mask alone, not added to SAM's; other decoders do not ask.
    """
    height, width = (4 * side for side in embedding_of(features).shape[-2:])
    tensors = named(features)
    hq = {"hq_token_only": np.full(1, hq_token_only, np.float32)} if EARLY in tensors else {}
    return {
        **tensors,
        **hq,
        "point_coords": coords,
        "point_labels": labels,
        "mask_input": np.zeros((len(coords), 1, height, width), np.float32) if masks is None else masks,
        "has_mask_input": np.full(1, masks is not None, np.float32),
    }


def runner_decoder(runner: Runner) -> Decoder:
    """An exported decoder, loaded in a runner, without a mask prompt; gives SAM's single mask of each prompt."""

    def decode(features: Features, coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
        return runner.infer(decoder_feed(features, coords, labels))["low_res_masks"][:, 0]

    return decode


def decode_prompts(
    image: np.ndarray,
    coords: np.ndarray,
    labels: np.ndarray,
    boxes: np.ndarray,
    embed: Embed,
    decode: Decoder,
    *,
    prompt_aware: bool,
) -> np.ndarray:
    """Logits (P, 4h, 4w) of all prompts of an image: one encoder call, or one a prompt where the encoder knows it.

    Args:
        image: float32 (1, 3, S, S), prepared.
        coords, labels: float32 (P, K, 2) and int64 (P, K), as the decoder takes them.
        boxes: float32 (P, 4), as a prompt-aware encoder takes them.
        embed, decode: the model.
        prompt_aware: whether the encoder takes a box.
    """
    if prompt_aware:
        each = [(embed(image, boxes[i : i + 1]), slice(i, i + 1)) for i in range(len(coords))]
    else:
        embedding, most = embed(image, None), PROMPTS[-1]  # engines take so many prompts at once
        each = [(embedding, slice(i, i + most)) for i in range(0, len(coords), most)]
    return np.concatenate([decode(embedding, coords[part], labels[part]) for embedding, part in each])
