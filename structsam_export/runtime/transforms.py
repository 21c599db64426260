"""How photos and prompts get into an encoder's square, as `segment_anything`'s `ResizeLongestSide` does it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import numpy as np

Size = tuple[int, int]


@dataclass(frozen=True)
class ResizeLongestSide:
    """The longest side becomes `target_length` px; the other keeps the proportion.

    Images and coordinates are `segment_anything`'s to the bit. Sides that would vanish, which that class cannot resize,
    get 1 px.
    """

    target_length: int
    RESAMPLING: ClassVar[str] = "BILINEAR"

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """A photo (h, w, 3) uint8, resized (Pillow's filter, which smooths when it shrinks)."""
        from PIL import Image

        height, width = self.get_preprocess_shape(image.shape[0], image.shape[1], self.target_length)
        method = Image.Resampling[self.RESAMPLING]
        resized: np.ndarray = np.array(Image.fromarray(image).resize((width, height), method))
        return resized

    def apply_coords(self, coords: np.ndarray, original_size: Size) -> np.ndarray:
        """Points (..., 2), x and y in pixels of a photo of (h, w), in encoder pixels; float64."""
        scaled = np.array(coords, float)
        scaled[..., 0] *= self.scale(original_size)[0]
        scaled[..., 1] *= self.scale(original_size)[1]
        return scaled

    def apply_boxes(self, boxes: np.ndarray, original_size: Size) -> np.ndarray:
        """Boxes (B, 4), x0 y0 x1 y1, as `apply_coords`."""
        return self.apply_coords(np.reshape(boxes, (-1, 2, 2)), original_size).reshape(-1, 4)

    def scale(self, original_size: Size) -> tuple[float, float]:
        """What x and y are multiplied by."""
        height, width = self.get_preprocess_shape(*original_size, self.target_length)
        return width / original_size[1], height / original_size[0]

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> Size:
        """(h, w) after resizing."""
        # In this order of operations: another one rounds some sizes to the pixel beside.
        scale = long_side_length * 1.0 / max(oldh, oldw)
        return max(1, int(oldh * scale + 0.5)), max(1, int(oldw * scale + 0.5))


@dataclass(frozen=True)
class Stretch(ResizeLongestSide):
    """Both sides become `target_length` px, as in MedSAM."""

    RESAMPLING: ClassVar[str] = "BICUBIC"

    @staticmethod
    def get_preprocess_shape(oldh: int, oldw: int, long_side_length: int) -> Size:
        """(h, w) after stretching."""
        return long_side_length, long_side_length


@dataclass(frozen=True)
class Interpolate(Stretch):
    """As `Stretch`, linearly between pixels and without smoothing or rounding, as in EfficientSAM."""

    def apply_image(self, image: np.ndarray) -> np.ndarray:
        """A photo (h, w, 3) uint8 -> float32 (target_length, target_length, 3), 0 to 255."""
        side = self.target_length
        rows = interpolated(image.reshape(image.shape[0], -1).astype(np.float32), side)
        columns = rows.reshape(side, *image.shape[1:]).swapaxes(0, 1).reshape(image.shape[1], -1)
        made: np.ndarray = interpolated(columns, side).reshape(side, side, -1).swapaxes(0, 1)
        return made


def interpolated(values: np.ndarray, target: int) -> np.ndarray:
    """Rows (n, k) -> rows (target, k), interpolated linearly as PyTorch's `F.interpolate(align_corners=False)`.

    Places are rounded to float32 as there, once: PyTorch's kernels multiply and subtract in one instruction. At 1000 px
    a float32 has 4 digits behind the point, so that another rounding can be seen in the result.
    """
    size = len(values)
    step = float(np.float32(size) / np.float32(target))
    place = np.maximum(((np.arange(target) + 0.5) * step - 0.5).astype(np.float32), 0)
    low = place.astype(np.int64)
    weight = (place - low).astype(np.float32)[:, None]
    first, second = values[np.minimum(low, size - 1)], values[np.minimum(low + 1, size - 1)]
    found: np.ndarray = first * (1 - weight) + second * weight
    return found


TRANSFORMS = {"medsam": Stretch, "efficientsam": Interpolate}


def transform_of(preprocessing: str, size: int) -> ResizeLongestSide:
    """The transform of a model's preprocessing (see `runtime.images.prepare`) into a square of `size` px."""
    return TRANSFORMS.get(preprocessing, ResizeLongestSide)(size)
