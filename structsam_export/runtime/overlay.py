"""Masks drawn into pictures."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

# Okabe-Ito, readable with any colour vision.
COLOURS = ((230, 159, 0), (86, 180, 233), (0, 158, 115), (204, 121, 167), (240, 228, 66), (213, 94, 0), (0, 114, 178))


def with_masks(image: np.ndarray, masks: np.ndarray | Sequence[np.ndarray]) -> np.ndarray:
    """A photo (h, w, 3) uint8, greyed, with every mask (P, h, w) tinted in its own colour."""
    grey = image.mean(-1, keepdims=True) * 0.6 + 80
    out = np.repeat(grey, 3, -1)
    for i, mask in enumerate(masks):
        out[mask] = 0.45 * out[mask] + 0.55 * np.array(COLOURS[i % len(COLOURS)])
    tinted: np.ndarray = out.clip(0, 255).astype(np.uint8)
    return tinted


def with_outlines(image: np.ndarray, masks: Sequence[np.ndarray]) -> np.ndarray:
    """The same, and every mask has an outline of one pixel, in front of all tints."""
    out = with_masks(image, masks)
    for i, mask in enumerate(masks):
        out[_edge(mask)] = COLOURS[i % len(COLOURS)]
    return out


def _edge(mask: np.ndarray) -> np.ndarray:
    """Pixels of a mask beside pixels that are not."""
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    edge: np.ndarray = mask & ~inner
    return edge
