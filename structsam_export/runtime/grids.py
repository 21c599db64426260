"""Where a picture is prompted when everything in it is asked for: grids of points, and crops of the picture."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product
from math import ceil

import numpy as np

NEAR = 20.0  # pixels from a crop's edge at which a mask counts as cut off


@dataclass(frozen=True)
class Crop:
    """A part of a picture, x0 y0 x1 y1 in pixels, and its layer: 0 is the whole picture."""

    box: tuple[int, int, int, int]
    layer: int

    @property
    def corner(self) -> np.ndarray:
        """x0, y0."""
        return np.array(self.box[:2])

    @property
    def area(self) -> int:
        x0, y0, x1, y1 = self.box
        return (x1 - x0) * (y1 - y0)

    def of(self, image: np.ndarray) -> np.ndarray:
        """This part of a picture (H, W, 3)."""
        x0, y0, x1, y1 = self.box
        return image[y0:y1, x0:x1]

    def cuts(self, box: np.ndarray, size: tuple[int, int]) -> bool:
        """Whether a mask's box (4,), in pixels of the crop, ends at the crop's edge and not at the picture's."""
        x0, y0 = self.box[:2]
        inside = (box + np.array([x0, y0, x0, y0])).astype(np.float32)
        picture = np.array([0, 0, size[1], size[0]], np.float32)
        at_crop = abs(inside - np.array(self.box, np.float32)) <= NEAR
        return bool((at_crop & ~(abs(inside - picture) <= NEAR)).any())

    def whole(self, mask: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        """A mask of this part in a picture of `size` (H, W)."""
        if mask.shape == size:
            return mask
        x0, y0, x1, y1 = self.box
        found = np.zeros(size, bool)
        found[y0:y1, x0:x1] = mask
        return found


def point_grid(side: int) -> np.ndarray:
    """side x side points, evenly spaced in [0, 1], (side^2, 2), row by row."""
    half = 1 / (2 * side)
    line = np.linspace(half, 1 - half, side)
    return np.stack([np.tile(line[None, :], (side, 1)), np.tile(line[:, None], (1, side))], -1).reshape(-1, 2)


def point_grids(side: int, layers: int, factor: int) -> list[np.ndarray]:
    """A grid for the picture and for each layer of crops, `factor` times fewer a side from one to the next."""
    return [point_grid(int(side / factor**layer)) for layer in range(layers + 1)]


def crops(size: tuple[int, int], layers: int, overlap_ratio: float) -> list[Crop]:
    """The picture of `size` (H, W) and its crops: 2 x 2 in the first layer, 4 x 4 in the second."""
    h, w = size
    found = [Crop((0, 0, w, h), 0)]
    for layer in range(1, layers + 1):
        each = 2**layer
        overlap = int(overlap_ratio * min(h, w) * (2 / each))
        crop_w, crop_h = (int(ceil((overlap * (each - 1) + length) / each)) for length in (w, h))
        starts = [[int((length - overlap) * i) for i in range(each)] for length in (crop_w, crop_h)]
        found += [Crop((x, y, min(x + crop_w, w), min(y + crop_h, h)), layer) for x, y in product(*starts)]
    return found
