"""How well a mask covers the true one: IoU, boundary IoU, Dice."""

from __future__ import annotations

from collections.abc import Sequence
from math import hypot

import numpy as np

from structsam_export.metrics import iou

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
    found = np.zeros_like(mask)
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    if len(rows):
        # Within its bounding box alone, as everything around is outside: small objects cost little on large images.
        box = slice(rows[0], rows[-1] + 1), slice(columns[0], columns[-1] + 1)
        # Chessboard distance: how often a 3 x 3 erosion can be repeated until the pixel is gone.
        inside = distance_transform_cdt(np.pad(mask[box], 1), metric="chessboard")[1:-1, 1:-1]
        found[box] = mask[box] & (inside <= d)
    return found


def boundary_iou(a: np.ndarray, b: np.ndarray, dilation: float = DILATION) -> float:
    """IoU of the boundaries of two boolean masks (h, w) (Cheng et al. 2021, equation 2)."""
    return iou(boundary(a, dilation), boundary(b, dilation))


def scores(
    drawn: np.ndarray, truth: np.ndarray, outlines: Sequence[np.ndarray] | None = None
) -> dict[str, list[float]]:
    """All metrics of masks drawn (K, h, w) against true ones (K, h, w), both bool; a list over objects by metric.

    `outlines` are the boundaries of the true masks, where they are known already.
    """
    pairs = list(zip(drawn, truth))
    outlines = [boundary(mask) for mask in truth] if outlines is None else outlines
    return {
        "iou": [iou(a, b) for a, b in pairs],
        "boundary_iou": [iou(boundary(a), b) for a, b in zip(drawn, outlines)],
        "dice": [dice(a, b) for a, b in pairs],
    }
