"""Masks of a stage: the embedding of each photo through a decoder, for every prompt."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from structsam_export.runtime.images import Prepared, masks_from_logits
from structsam_export.validate.photos import Photo, prompt_arrays

# (embedding (1, C, h, w), coords (P, 2, 2), labels (P, 2)) -> low-resolution logits (P, h, w)
Decoder = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def torch_decoder(sam: Any) -> Decoder:
    """SAM's own prompt encoder and mask decoder, called as `SamPredictor` calls them (not the export's version)."""
    import torch

    def one(embedding: torch.Tensor, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        is_box = bool(labels[0] == 2)
        sparse, dense = sam.prompt_encoder(
            points=None if is_box else (coords[None, :1], labels[None, :1]),
            boxes=coords.reshape(1, 4) if is_box else None,
            masks=None,
        )
        logits, _ = sam.mask_decoder(
            image_embeddings=embedding,
            image_pe=sam.prompt_encoder.get_dense_pe(),
            sparse_prompt_embeddings=sparse,
            dense_prompt_embeddings=dense,
            multimask_output=False,
        )
        return logits[0, 0]

    def decode(embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
        with torch.no_grad():
            rows = zip(torch.as_tensor(coords), torch.as_tensor(labels))
            return np.asarray(torch.stack([one(torch.as_tensor(embedding), c, p) for c, p in rows]))

    return decode


def runner_decoder(runner: Any) -> Decoder:
    """An exported decoder behind an active polygraphy runner."""

    def decode(embedding: np.ndarray, coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
        side = 4 * embedding.shape[-1]
        outputs = runner.infer(
            {
                "image_embeddings": embedding,
                "point_coords": coords,
                "point_labels": labels,
                "mask_input": np.zeros((len(coords), 1, 4 * embedding.shape[-2], side), np.float32),
                "has_mask_input": np.zeros(1, np.float32),
            }
        )
        return np.array(outputs["low_res_masks"])[:, 0]

    return decode


def stage_masks(
    decode: Decoder,
    embeddings: Sequence[np.ndarray],
    photos: Sequence[Photo],
    prepared: Sequence[Prepared],
    size: int,
) -> list[np.ndarray]:
    """Boolean masks (P, h, w) of every photo."""
    masks = []
    for embedding, photo, ready in zip(embeddings, photos, prepared):
        coords, labels = prompt_arrays(photo.prompts, ready.scale)
        masks.append(masks_from_logits(decode(embedding[:1], coords, labels), ready, size))
    return masks
