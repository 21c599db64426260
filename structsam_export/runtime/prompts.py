"""Prompts, and how they reach an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

# Prompts P and points K that an engine's decoder takes: smallest, typical, largest.
PROMPTS, POINTS = (1, 4, 64), (1, 2, 16)


@dataclass(frozen=True)
class Prompt:
    """One box (x0, y0, x1, y1) or one foreground point (x, y), in the photo's pixels; `truth` bool (h, w)."""

    name: str
    box: tuple[float, ...] | None = None
    point: tuple[float, ...] | None = None
    truth: np.ndarray | None = None


def prompt_arrays(prompts: Iterable[Prompt], scale: tuple[float, float]) -> tuple[np.ndarray, np.ndarray]:
    """Prompts as the decoder takes them: coords float32 (P, 2, 2) in encoder pixels, labels int64 (P, 2).

    A box is its two corners (labels 2, 3); a point is followed by SAM's padding point (label -1).
    """
    coords, labels = [], []
    for prompt in prompts:
        if prompt.box is not None:
            coords.append(np.reshape(prompt.box, (2, 2)))
            labels.append((2, 3))
        else:
            coords.append(np.array([prompt.point, (0, 0)], float))
            labels.append((1, -1))
    return (np.stack(coords) * np.array(scale)).astype(np.float32), np.array(labels, np.int64)


def prompt_box(prompt: Prompt, scale: tuple[float, float]) -> np.ndarray:
    """A prompt as a prompt-aware encoder takes it: (1, 4) float32 in encoder pixels; a point is a box of no size."""
    place = prompt.box if prompt.box is not None else (prompt.point or ()) * 2
    corners: np.ndarray = np.asarray(place, float).reshape(2, 2) * np.array(scale)
    return corners.reshape(1, 4).astype(np.float32)


def decoder_profile(image_size: int, patch_size: int) -> dict[str, Any]:
    """Smallest, typical and largest shapes of the decoder's dynamic inputs, for builders of engines."""
    side = 4 * (image_size // patch_size)
    return {
        "point_coords": tuple((p, k, 2) for p, k in zip(PROMPTS, POINTS)),
        "point_labels": tuple((p, k) for p, k in zip(PROMPTS, POINTS)),
        "mask_input": tuple((p, 1, side, side) for p in PROMPTS),
    }
