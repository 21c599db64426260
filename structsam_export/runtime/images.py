"""Photos in, masks out: the steps before the encoder and after the decoder, as `SamPredictor` and MedSAM do them."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np

from structsam_export.runtime.transforms import Size, interpolated, transform_of

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Prepared:
    """A photo ready for the encoder.

    `tensor` float32 (1, 3, S, S); `original` and `resized` are (height, width) before and after resizing, the rest
    of the S x S square is padding; `scale` (x, y) maps photo pixels to encoder pixels. `seen` (S, S, 3) uint8 is
    what is left of a photo that was cropped, None where that is all of it.
    """

    tensor: np.ndarray
    original: tuple[int, int]
    resized: tuple[int, int]
    scale: tuple[float, float]
    seen: np.ndarray | None = None


def prepare(image: np.ndarray, size: int, preprocessing: str = "sam") -> Prepared:
    """Resize and normalise a photo (h, w, 3) uint8 for an encoder of `size` px.

    "sam": longest side to `size`, the other one to at least 1 px, ImageNet mean and deviation, zeros below or beside.
    "medsam": stretched to a square, values scaled to [0, 1] by the photo's own range (MedSAM's inference script).
    "litemedsam": longest side to `size` as for "sam", values as for "medsam", zeros below or beside (LiteMedSAM's).
    "efficientsam": stretched to a square, linearly between pixels, ImageNet mean and deviation (EfficientSAM's).
    """
    transform = transform_of(preprocessing, size)
    pixels: np.ndarray = transform.apply_image(image).astype(np.float32)
    if preprocessing in ("medsam", "litemedsam"):
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) / max(high - low, 1e-8)
    else:
        pixels = (pixels - np.array(PIXEL_MEAN, np.float32)) / np.array(PIXEL_STD, np.float32)
    height, width = pixels.shape[:2]
    square = np.zeros((1, 3, size, size), np.float32)
    square[0, :, :height, :width] = pixels.transpose(2, 0, 1)
    original = (image.shape[0], image.shape[1])
    return Prepared(square, original, (height, width), transform.scale(original))


def masks_from_logits(logits: Any, photo: Prepared, size: int) -> np.ndarray:
    """Low-resolution logits (P, h, w) -> boolean masks (P, H, W) of the photo's own size (`Sam.postprocess_masks`)."""
    return masks_of(np.asarray(logits, np.float32), size, photo.resized, photo.original)


def masks_of(logits: np.ndarray, size: int, resized: Size, original: Size, threshold: float = 0.0) -> np.ndarray:
    """Low-resolution logits (..., h, w) -> boolean masks (..., H, W); one mask's logits are in memory at a time.

    Args:
        logits: float32.
        size: side of the encoder's square in pixels.
        resized, original: (height, width) of the photo in that square, and its own.
        threshold: logits above it are the object.
    """
    masks = np.empty((*logits.shape[:-2], *original), bool)
    for index in np.ndindex(logits.shape[:-2]):
        masks[index] = upscaled(logits[index], size, resized, original) > threshold
    return masks


def upscaled(logits: np.ndarray, size: int, resized: Size, original: Size) -> np.ndarray:
    """Low-resolution logits (..., h, w) -> logits (..., H, W) of the photo's own size, as `Sam.postprocess_masks`.

    That resizes to the encoder's square, crops and resizes again. Each step is linear along each axis, so that both
    are one product from the left and one from the right.
    """
    rows = _interpolation(logits.shape[-2], size, resized[0], original[0])
    columns = _interpolation(logits.shape[-1], size, resized[1], original[1])
    found: np.ndarray = rows @ logits @ columns.T
    return found


@lru_cache(maxsize=16)
def _interpolation(low: int, size: int, kept: int, original: int) -> np.ndarray:
    """Weights (original, low), float32: `low` samples to `size`, of which the first `kept` become `original`."""
    square = interpolated(np.eye(low), size)[:kept]
    return interpolated(square, original).astype(np.float32)
