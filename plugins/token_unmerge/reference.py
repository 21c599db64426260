"""What the kernel computes, in NumPy and float64."""

from __future__ import annotations

import numpy as np


def reference(slots: np.ndarray, slot: np.ndarray, residual: np.ndarray, window: tuple[int, int]) -> np.ndarray:
    """slots (B * windows, n, D), slot (B * windows, N), residual (B, H, W, D) -> residual + slots[slot] float64."""
    B, H, W, D = residual.shape
    h, w = window
    down, across = -(-H // h), -(-W // w)
    known = (slot >= 0) & (slot < slots.shape[1])
    index = np.where(known, slot, 0)
    x = np.take_along_axis(slots.astype(np.float64), index[:, :, None].astype(np.int64), 1)
    x = np.where(known[:, :, None], x, 0.0)
    x = x.reshape(B, down, across, h, w, D).transpose(0, 1, 3, 2, 4, 5).reshape(B, down * h, across * w, D)
    return np.asarray(residual + x[:, :H, :W])
