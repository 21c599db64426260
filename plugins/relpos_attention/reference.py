"""What the kernel computes, in NumPy and float64, with all scores in memory."""

from __future__ import annotations

import numpy as np


def reference(
    q: np.ndarray, k: np.ndarray, v: np.ndarray, rel: np.ndarray, pos: np.ndarray, heads: int, window: tuple[int, int]
) -> np.ndarray:
    """q, k, v (B, n, heads * d), rel (B, n, heads, L), pos (B, n) -> (B, n, heads * d) float64; L = 2h - 1 + 2w - 1.

    q is scaled. A key with a position outside of the window is not there; a query outside of it has no bias.
    """
    (B, n, D), (h, w) = q.shape, window
    queries, keys, values = (x.astype(np.float64).reshape(B, n, heads, D // heads).swapaxes(1, 2) for x in (q, k, v))
    there = (pos >= 0) & (pos < h * w)
    place = np.where(there, pos, 0).astype(np.int64)
    row, column = place // w, place % w
    products = rel.astype(np.float64).swapaxes(1, 2)
    bias = np.zeros((B, heads, n, n))
    for first, line in ((h - 1, row), (2 * h - 1 + w - 1, column)):
        at = first + line[:, :, None] - line[:, None, :]
        bias += np.take_along_axis(products, np.broadcast_to(at[:, None], bias.shape), 3)
    bias = np.where(there[:, None, :, None], bias, 0.0)
    with np.errstate(invalid="ignore", over="ignore"):
        scores = np.where(there[:, None, None, :], queries @ keys.swapaxes(2, 3) + bias, -np.inf)
        p = np.exp(scores - scores.max(-1, keepdims=True))
        y = (p / p.sum(-1, keepdims=True)) @ np.where(there[:, None, :, None], values, 0.0)
    return np.asarray(y.swapaxes(1, 2).reshape(B, n, D))
