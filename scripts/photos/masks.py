"""True masks of the bundled photos, fitted by hand or by threshold."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import ndimage
from skimage import draw, filters, measure, morphology, segmentation

CUP = """284,18 259,20 240,25 220,33.5 203,47 189.5,60.5 178.8,78.5 173.3,97 172.5,112 173,125 173,144 176,166 180,184
185,197 190,208 199,220 209,229 218,235 206,253 200,263 197,276 196,288 198,295 205,302 216,308 223,309 231,301 240,297
248,289 257,278 258,282 272,284 288,285 304,282 320,273 328,266 331,261 335,257 340,252 346,248 351,242 355,238 360,232
367,226 376,217 382,210 387,201 392,191 397,180 400.5,170 403.5,160 406,150 407.5,140 409,128 408.5,115 406,99
399.5,79 389.5,65 374,50 359,38 340,28.5 320,22 303,19"""


def polygon(shape: tuple[int, int], text: str) -> np.ndarray:
    """Fill a polygon given as "x,y x,y ..."; pixel centres lie at halves."""
    xy = np.array([p.split(",") for p in text.split()], float)
    return draw.polygon2mask(shape, xy[:, ::-1] - 0.5)


def disk(shape: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    """Fill a circle."""
    ys, xs = np.indices(shape) + 0.5
    return (xs - x) ** 2 + (ys - y) ** 2 < radius**2


def coins(grey: np.ndarray) -> np.ndarray:
    """The coins of scikit-image's watershed example, smoothed; numbered by their topmost pixel."""
    markers = np.where(grey > 150, 2, np.where(grey < 30, 1, 0)).astype(np.int32)
    inside = ndimage.binary_fill_holes(segmentation.watershed(filters.sobel(grey), markers) == 2)
    labels = measure.label(morphology.opening(inside, morphology.disk(2)))
    return segmentation.relabel_sequential(morphology.remove_small_objects(labels, max_size=300))[0]


MASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "astronaut": lambda grey: disk(grey.shape, 170.6, 385.5, 37.4),
    "cell": lambda grey: ndimage.binary_fill_holes(grey > 90),  # midway between the cell and the halo around it
    "coffee": lambda grey: polygon(grey.shape, CUP),
    "coins": coins,
}
