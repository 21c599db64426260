"""How well a mask covers the true one: IoU, boundary IoU, Dice."""

from __future__ import annotations

from math import hypot

import numpy as np

from structsam_export.validate.metrics import iou

# Share of the image's diagonal that counts as boundary (Boundary IoU, arXiv 2103.16562; also HQ-SAM, arXiv 2306.01567).
DILATION = 0.02
METRICS = ("iou", "boundary_iou", "dice")


def dice(a: np.ndarray, b: np.ndarray) -> float:
    """2 |a & b| / (|a| + |b|) of two boolean masks (h, w); two empty masks agree (1)."""
    total = int(a.sum()) + int(b.sum())
    return float(2 * np.logical_and(a, b).sum() / total) if total else 1.0


def boundary(mask: np.ndarray, dilation: float = DILATION) -> np.ndarray:
    """The pixels of a mask within d pixels of its outline, d = max(1, round(dilation * diagonal)).

    A pixel belongs to it if one outside the mask lies in the square of 2d + 1 pixels around it. Everything beyond the
    image is outside, so that a mask cut off by the border has its boundary there (Cheng et al. 2021, section 4).

    Args:
        mask: bool (h, w).
        dilation: share of the image's diagonal.

    Returns:
        Bool (h, w).
    """
    from scipy.ndimage import distance_transform_cdt

    d = max(1, round(dilation * hypot(*mask.shape)))
    # Chessboard distance: how often a 3 x 3 erosion can be repeated until the pixel is gone.
    inside = distance_transform_cdt(np.pad(mask, 1), metric="chessboard")[1:-1, 1:-1]
    found: np.ndarray = mask & (inside <= d)
    return found


def boundary_iou(a: np.ndarray, b: np.ndarray, dilation: float = DILATION) -> float:
    """IoU of the boundaries of two boolean masks (h, w) (Cheng et al. 2021, equation 2)."""
    return iou(boundary(a, dilation), boundary(b, dilation))


def scores(drawn: np.ndarray, truth: np.ndarray) -> dict[str, list[float]]:
    """All metrics of masks drawn (K, h, w) against true ones (K, h, w), both bool; a list over objects by metric."""
    measures = {"iou": iou, "boundary_iou": boundary_iou, "dice": dice}
    return {name: [measure(a, b) for a, b in zip(drawn, truth)] for name, measure in measures.items()}
