"""How an evaluation shows an image to a model, and how it draws masks from the model's logits.

    sam     the aspect is kept, prompts come from the masks as they are, logits are resized to the image and cut at 0
            (`SamPredictor`)
    samhq   image and mask are stretched to the encoder's square; the box comes from the stretched mask; the mask is cut
            at that size, and it is this mask of zeros and ones that is resized, bilinearly, and cut above 0, which
            grows it a little (HQ-SAM, arXiv 2306.01567; the master thesis of S. Xie, whose figures follow it)

Figures of one protocol do not compare with those of the other.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam_export.datasets.base import THRESHOLD
from structsam_export.errors import BadInputError

if TYPE_CHECKING:
    from structsam_export.datasets import Sample

PROMPTS = ("box", "point")


@dataclass(frozen=True)
class Case:
    """One image as a protocol shows it to a model.

    Args:
        image: float32 (1, 3, S, S), ready for the encoder.
        coords: float32 (K, 2, 2), prompts as the decoder takes them, in encoder pixels.
        labels: int64 (K, 2).
        boxes: float32 (K, 4), prompts as a prompt-aware encoder takes them, in encoder pixels.
        truth: bool (K, H, W), the true masks in the image's own size.
        draw: low-resolution logits (K, h, w) -> bool masks (K, H, W).
    """

    image: np.ndarray
    coords: np.ndarray
    labels: np.ndarray
    boxes: np.ndarray
    truth: np.ndarray
    draw: Callable[[np.ndarray], np.ndarray]


def sam_case(sample: Sample, size: int, preprocessing: str, prompt: str) -> Case:
    """The protocol "sam"; see the module."""
    from structsam_export.runtime.images import masks_from_logits, prepare

    image, truth = sample.image(), sample.masks()
    check(sample, image, truth)
    ready = prepare(image, size, preprocessing)
    return case_of(
        sample, ready, truth, truth, prompt, lambda logits: np.asarray(masks_from_logits(logits, ready, size))
    )


def samhq_case(sample: Sample, size: int, preprocessing: str, prompt: str) -> Case:
    """The protocol "samhq"; see the module."""
    from structsam_export.runtime.images import masks_from_logits, prepare

    image, grey = sample.image(), sample.alpha()
    check(sample, image, grey)
    # Fractions of a grey level are cut off, not rounded, as a cast to bytes does it there.
    square = stretched(image.transpose(2, 0, 1), (size, size)).astype(np.uint8).transpose(1, 2, 0)
    ready = prepare(square, size, preprocessing)

    def draw(logits: np.ndarray) -> np.ndarray:
        drawn = masks_from_logits(logits, ready, size)
        return drawn if drawn.shape[1:] == image.shape[:2] else stretched(drawn, image.shape[:2]) > 0

    return case_of(sample, ready, stretched(grey, (size, size)) > THRESHOLD, grey > THRESHOLD, prompt, draw)


# Name -> (sample, side of the encoder's square, preprocessing, prompt) -> what the model sees.
PROTOCOLS: dict[str, Callable[[Sample, int, str, str], Case]] = {"sam": sam_case, "samhq": samhq_case}


def case_of(
    sample: Sample, ready: Any, shown: np.ndarray, truth: np.ndarray, prompt: str, draw: Callable[..., np.ndarray]
) -> Case:
    """A case with prompts from the masks `shown` (K, h, w), which are in the pixels of the prepared image `ready`.

    Raises:
        BadInputError: a mask is empty, so that no prompt can be made of it.
    """
    from structsam_export.runtime.prompts import Prompt, prompt_arrays, prompt_box

    if not all(mask.any() for mask in (*shown, *truth)):
        raise BadInputError(f"{sample.name}: a mask is empty (at the size the prompt is taken from). Remove it.")
    if prompt == "box":
        prompts = [Prompt(str(i), box=box_of(mask)) for i, mask in enumerate(shown)]
    else:
        prompts = [Prompt(str(i), point=point_of(mask)) for i, mask in enumerate(shown)]
    coords, labels = prompt_arrays(prompts, ready.scale)
    boxes = np.concatenate([prompt_box(p, ready.scale) for p in prompts])
    return Case(ready.tensor, coords, labels, boxes, truth, draw)


def check(sample: Sample, image: np.ndarray, masks: np.ndarray) -> None:
    """Refuse masks that do not fit their image.

    Raises:
        BadInputError: no masks, or masks of another size.
    """
    if masks.ndim != 3 or not len(masks):
        raise BadInputError(f"{sample.name} has no masks. Remove the image, or give it at least one.")
    if masks.shape[1:] != image.shape[:2]:
        sizes = [f"{shape[1]}x{shape[0]}" for shape in (masks.shape[1:], image.shape[:2])]
        raise BadInputError(f"{sample.name}: masks are {sizes[0]} pixels, the image {sizes[1]}. They must be equal.")


def box_of(mask: np.ndarray) -> tuple[float, float, float, float]:
    """x0, y0, x1, y1 of the first and last pixels of a boolean mask (h, w), the last ones included (as in HQ-SAM)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    return float(columns[0]), float(rows[0]), float(columns[-1]), float(rows[-1])


def point_of(mask: np.ndarray) -> tuple[float, float]:
    """x, y of the pixel of a boolean mask (h, w) farthest from its boundary; the first one of several.

    The image's border counts as boundary. Distances are Euclidean and exact.
    """
    from scipy.ndimage import distance_transform_edt

    inside = distance_transform_edt(np.pad(mask, 1))[1:-1, 1:-1]
    y, x = np.unravel_index(int(inside.argmax()), mask.shape)
    return float(x), float(y)


def filled_boxes(truth: np.ndarray) -> np.ndarray:
    """The bounding boxes of masks (K, h, w) as masks: what a model that only fills its box would draw."""
    found = np.zeros_like(truth, bool)
    for filled, mask in zip(found, truth):
        x0, y0, x1, y1 = (int(v) for v in box_of(mask))
        filled[y0 : y1 + 1, x0 : x1 + 1] = True
    return found


def stretched(planes: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Planes (C, h, w) of any type, resized bilinearly as float32 (C, *size), without smoothing."""
    import torch
    import torch.nn.functional as F

    x = torch.as_tensor(np.ascontiguousarray(planes, np.float32))[None]
    return np.asarray(F.interpolate(x, size, mode="bilinear", align_corners=False)[0])
