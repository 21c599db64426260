"""What the kernel computes, in NumPy and float64."""

from __future__ import annotations

import numpy as np


def reference(y: np.ndarray, pos: np.ndarray, window: tuple[int, int], merged: int) -> np.ndarray:
    """y (B, H, W, D), pos (B * windows, n) -> slots (B * windows, n, D) float64; the last `merged` are means."""
    B, H, W, D = y.shape
    h, w = window
    down, across = -(-H // h), -(-W // w)
    x = np.zeros((B, down * h, across * w, D))
    x[:, :H, :W] = y
    x = x.reshape(B, down, h, across, w, D).transpose(0, 1, 3, 2, 4, 5).reshape(-1, h, w, D)
    out = np.zeros((*pos.shape, D))
    for call, places in enumerate(pos):
        for slot, place in enumerate(places):
            if not 0 <= place < h * w:
                continue
            r, c = divmod(int(place), w)
            r0, c0 = r // 2 * 2, c // 2 * 2
            cell = slot >= len(places) - merged and r0 + 1 < h and c0 + 1 < w
            out[call, slot] = x[call, r0 : r0 + 2, c0 : c0 + 2].mean((0, 1)) if cell else x[call, r, c]
    return out
