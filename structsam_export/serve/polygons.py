"""Masks as polygons, which is what labelling programs edit."""

from __future__ import annotations

import numpy as np

SMALLEST = 0.01  # of the largest part's area; smaller parts are specks
MOST = 64  # parts


def polygons(mask: np.ndarray, epsilon: float) -> list[list[list[float]]]:
    """The outlines of a mask's parts, largest first, without holes.

    Args:
        mask: bool (H, W).
        epsilon: how far a corner that is left out may be from the outline, as a share of its length.

    Returns:
        for each part its corners (x, y) in pixels of the picture, pixel centres being whole numbers.
    """
    from contourpy import contour_generator

    padded = np.pad(mask, 1).astype(np.float32)
    lines = [np.asarray(line) - 1 for line in contour_generator(z=padded).lines(0.5)]
    areas = [_area(line) for line in lines]  # holes run the other way round
    outer = 1.0 if sum(areas) >= 0 else -1.0
    parts = sorted(((outer * area, i) for i, area in enumerate(areas) if outer * area > 0), reverse=True)
    found = []
    for area, i in parts[:MOST]:
        if area < SMALLEST * parts[0][0]:
            break
        line = lines[i]
        length = float(np.linalg.norm(np.diff(line, axis=0), axis=1).sum())
        kept = simplified(line, epsilon * length)
        if len(kept) > 3:
            bounded = np.clip(kept[:-1], 0, np.array(mask.shape[::-1]) - 1)
            found.append(np.round(bounded, 2).tolist())
    return found


def _area(line: np.ndarray) -> float:
    """Signed area of a closed line (N, 2)."""
    x, y = line[:-1].T
    x1, y1 = line[1:].T
    return float((x * y1 - x1 * y).sum() / 2)


def simplified(line: np.ndarray, most: float) -> np.ndarray:
    """A line (N, 2) with the corners that Ramer, Douglas and Peucker keep: none that is left out is farther than `most`
    from it; the ends stay.
    """
    kept = np.zeros(len(line), bool)
    kept[[0, -1]] = True
    spans = [(0, len(line) - 1)]
    while spans:
        first, last = spans.pop()
        if last - first < 2:
            continue
        begin, way = line[first], line[last] - line[first]
        steps = line[first + 1 : last] - begin
        length = float(np.hypot(*way))
        distances = (
            np.abs(way[0] * steps[:, 1] - way[1] * steps[:, 0]) / length
            if length
            else np.hypot(steps[:, 0], steps[:, 1])
        )
        farthest = int(distances.argmax())
        if distances[farthest] > most:
            middle = first + 1 + farthest
            kept[middle] = True
            spans += [(first, middle), (middle, last)]
    return line[kept]
