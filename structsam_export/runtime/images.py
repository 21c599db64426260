"""Photos in, masks out: the steps before the encoder and after the decoder, as `SamPredictor` and MedSAM do them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

PIXEL_MEAN = (123.675, 116.28, 103.53)
PIXEL_STD = (58.395, 57.12, 57.375)


@dataclass(frozen=True)
class Prepared:
    """A photo ready for the encoder.

    `tensor` float32 (1, 3, S, S); `original` and `resized` are (height, width) before and after resizing, the rest
    of the S x S square is padding; `scale` (x, y) maps photo pixels to encoder pixels.
    """

    tensor: np.ndarray
    original: tuple[int, int]
    resized: tuple[int, int]
    scale: tuple[float, float]


def prepare(image: np.ndarray, size: int, preprocessing: str = "sam") -> Prepared:
    """Resize and normalise a photo (h, w, 3) uint8 for an encoder of `size` px.

    "sam": longest side to `size`, the other one to at least 1 px, ImageNet mean and deviation, zeros below or beside.
    "medsam": stretched to a square, values scaled to [0, 1] by the photo's own range (MedSAM's inference script).
    """
    from PIL import Image

    h, w = image.shape[:2]
    if preprocessing == "medsam":
        nh, nw, method = size, size, Image.Resampling.BICUBIC
    else:
        nh, nw = (max(1, int(side * size / max(h, w) + 0.5)) for side in (h, w))
        method = Image.Resampling.BILINEAR
    pixels: np.ndarray = np.asarray(Image.fromarray(image).resize((nw, nh), method), np.float32)
    if preprocessing == "medsam":
        low, high = pixels.min(), pixels.max()
        pixels = (pixels - low) / max(high - low, 1e-8)
    else:
        pixels = (pixels - np.array(PIXEL_MEAN, np.float32)) / np.array(PIXEL_STD, np.float32)
    square = np.zeros((1, 3, size, size), np.float32)
    square[0, :, :nh, :nw] = pixels.transpose(2, 0, 1)
    return Prepared(square, (h, w), (nh, nw), (nw / w, nh / h))


def masks_from_logits(logits: Any, photo: Prepared, size: int) -> np.ndarray:
    """Low-resolution logits (P, h, w) -> boolean masks (P, H, W) of the photo's own size (`Sam.postprocess_masks`)."""
    height, width = photo.resized
    squares = (resized(low, (size, size)) for low in np.asarray(logits, np.float32))
    return np.stack([resized(square[:height, :width], photo.original) > 0 for square in squares])  # one in memory


def resized(values: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A map (h, w) float32 interpolated to `shape` bilinearly, as PyTorch's `F.interpolate(align_corners=False)`."""
    for axis, target in enumerate(shape):
        size = values.shape[axis]
        place = np.maximum((np.arange(target, dtype=np.float32) + np.float32(0.5)) * np.float32(size / target) - 0.5, 0)
        low = place.astype(np.int64)
        weight = (place - low).astype(np.float32)
        weight = weight[:, None] if axis == 0 else weight
        first, second = (values.take(i, axis) for i in (low, np.minimum(low + 1, size - 1)))
        values = first * (1 - weight) + second * weight
    return values
