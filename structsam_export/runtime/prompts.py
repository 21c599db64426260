"""Prompts, and how they reach an encoder and a decoder."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from structsam_export.errors import PromptError, shortened
from structsam_export.runtime.transforms import ResizeLongestSide

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


@dataclass(frozen=True)
class PromptBatch:
    """P prompts as an encoder and a decoder take them.

    `coords` float32 (P, K, 2) in encoder pixels and `labels` int64 (P, K), padding points and box corners included;
    `masks` float32 (P, 1, 4h, 4w) or None; `regions` float32 (P, 4), the box that a prompt-aware encoder protects, or
    None.
    """

    coords: np.ndarray
    labels: np.ndarray
    masks: np.ndarray | None
    regions: np.ndarray | None


def prompt_batch(
    points: Any, labels: Any, boxes: Any, masks: Any, low_res: tuple[int, int], *, with_region: bool = False
) -> PromptBatch:
    """Points, boxes and masks, checked and put together as SAM's prompt encoder does it.

    Points come first and a box's corners after them; points without a box end with a padding point.

    Args:
        points, labels: (P, N, 2) in encoder pixels and (P, N) of -1, 0 and 1, or None.
        boxes: (P, 4) in encoder pixels, or None.
        masks: (P, 1, 4h, 4w), or (1, 1, 4h, 4w) for all prompts, or None.
        low_res: (4h, 4w).
        with_region: also find the box that a prompt-aware encoder takes: the prompt's own, else the one around its
            foreground points, else the one around its points.

    Raises:
        PromptError: other shapes, numbers that are not finite, unknown labels, no prompt.
    """
    if (points is None) != (labels is None):
        raise PromptError("Points and labels belong together. Pass both, or none of them.")
    given = {
        "points": None if points is None else _numbers(points, "points", (None, None, 2)),
        "boxes": None if boxes is None else _numbers(boxes, "boxes", (None, 4)),
        "mask_input": None if masks is None else _numbers(masks, "mask_input", (None, 1, *low_res)),
    }
    counts = {name: len(values) for name, values in given.items() if values is not None}
    if not counts:
        raise PromptError("There is no prompt. Pass points with labels, a box, or a mask_input.")
    count = max(counts.values())
    if wrong := [f"{n} {name}" for name, n in counts.items() if n not in (count, 1 if name == "mask_input" else count)]:
        raise PromptError(f"Prompts differ in number: {', '.join(wrong)} of {count}. Pass as many of each.")
    parts, kinds = [np.zeros((count, 0, 2), np.float32)], [np.zeros((count, 0), np.int64)]
    if given["points"] is not None:
        parts.append(given["points"])
        kinds.append(_labels(labels, given["points"].shape[:2]))
        if boxes is None:
            parts.append(np.zeros((count, 1, 2), np.float32))
            kinds.append(np.full((count, 1), -1, np.int64))
    if given["boxes"] is not None:
        parts.append(given["boxes"].reshape(count, 2, 2))
        kinds.append(np.tile(np.array([2, 3], np.int64), (count, 1)))
    coords, every = np.concatenate(parts, 1), np.concatenate(kinds, 1)
    mask = given["mask_input"]
    mask = None if mask is None else np.broadcast_to(mask, (count, *mask.shape[1:])).copy()
    return PromptBatch(coords, every, mask, _regions(coords, every) if with_region else None)


def prompt_of_photo(
    transform: ResizeLongestSide, size: tuple[int, int], points: Any, labels: Any, box: Any, mask: Any
) -> tuple[np.ndarray | None, np.ndarray | None, np.ndarray | None, np.ndarray | None]:
    """One prompt in pixels of a photo of `size` (h, w) as the arguments of `prompt_batch`, with P = 1.

    Args:
        transform: of the encoder.
        size: of the photo.
        points, labels: (N, 2) and (N,), or None.
        box: (4,) or (1, 4), or None.
        mask: (1, 4h, 4w), or None.

    Raises:
        PromptError: other shapes.
    """
    boxes = None
    if points is not None:
        points = _array(points, "points")
        if points.ndim != 2 or points.shape[1] != 2:
            raise PromptError(f"Points have shape {points.shape}, not (N, 2): x and y of each.")
        points = transform.apply_coords(points, size)[None]
    if box is not None:
        corners = _array(box, "the box")
        if corners.size != 4:
            raise PromptError(
                f"A box is four numbers, x0 y0 x1 y1, not {corners.shape}. Use predict_batch for several."
            )
        boxes = transform.apply_boxes(corners, size)
    labels = None if labels is None else _array(labels, "labels")[None]
    return points, labels, boxes, None if mask is None else _array(mask, "mask_input")[None]


def _array(values: Any, what: str) -> np.ndarray:
    try:
        return np.asarray(values, float)
    except (TypeError, ValueError):
        raise PromptError(f"Cannot read {what} as numbers: {shortened(values)}.") from None


def _numbers(values: Any, what: str, shape: tuple[int | None, ...]) -> np.ndarray:
    """Finite float32 of a shape; None: any size but 0."""
    try:
        with np.errstate(over="ignore"):
            found = np.asarray(values, np.float32)
    except (TypeError, ValueError):
        raise PromptError(f"Cannot read {what} as numbers: {shortened(values)}.") from None
    if found.ndim != len(shape) or any(n != m and (m is not None or n == 0) for n, m in zip(found.shape, shape)):
        wanted = ", ".join("n" if n is None else str(n) for n in shape)
        raise PromptError(f"{what} have shape {found.shape}, not ({wanted}).")
    if 0 in found.shape:
        raise PromptError(f"{what} are empty: {found.shape}. Leave them away, or pass some.")
    if not np.isfinite(found).all():
        raise PromptError(f"{what} hold numbers that are not finite (NaN or infinity).")
    return found


def _labels(values: Any, shape: tuple[int, ...]) -> np.ndarray:
    found = _array(values, "labels")
    if found.shape != shape:
        raise PromptError(f"labels have shape {found.shape}, points {(*shape, 2)}. Pass one label a point.")
    if not np.isin(found, (-1, 0, 1)).all():
        raise PromptError("A label is 1 (foreground), 0 (background) or -1 (no point); corners of boxes go into boxes.")
    return found.astype(np.int64)


def _regions(coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The box (P, 4) that each prompt is about."""
    found = []
    for places, kinds in zip(coords, labels):
        chosen = next((kind for kind in ((2, 3), (1,), (0,)) if np.isin(kinds, kind).any()), None)
        if chosen is None:
            raise PromptError("A prompt-aware export needs a point or a box: it is what the encoder protects.")
        inside = places[np.isin(kinds, chosen)]
        found.append(np.concatenate([inside.min(0), inside.max(0)]))
    return np.stack(found).astype(np.float32)


def decoder_profile(image_size: int, patch_size: int) -> dict[str, Any]:
    """Smallest, typical and largest shapes of the decoder's dynamic inputs, for builders of engines."""
    side = 4 * (image_size // patch_size)
    return {
        "point_coords": tuple((p, k, 2) for p, k in zip(PROMPTS, POINTS)),
        "point_labels": tuple((p, k) for p, k in zip(PROMPTS, POINTS)),
        "mask_input": tuple((p, 1, side, side) for p in PROMPTS),
    }
