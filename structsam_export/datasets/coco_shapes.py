"""What COCO calls a segmentation, as many tools write it: polygons or run lengths, in every form that means one thing.

Numbers may be text. Polygons may be one flat list of coordinates, or lists of points. A part that is no area (fewer
than three points, an odd number of coordinates, far outside the image) is left out, an object without any part as well.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np

from structsam_export.errors import DatasetError, shortened
from structsam_export.runtime import regions

ERRORS = (KeyError, TypeError, ValueError, OverflowError, IndexError, AttributeError)


def whole(value: Any) -> int | None:
    """A whole number, or text or a float that is one; None for anything else."""
    if isinstance(value, bool):
        return int(value)
    try:
        number = int(value) if isinstance(value, (int, str)) else float(value)
        return int(number) if number == int(number) else None
    except (TypeError, ValueError, OverflowError):
        return whole_text(value)


def whole_text(value: Any) -> int | None:
    """Text such as "300.0" as a number."""
    try:
        number = float(value) if isinstance(value, str) else float("nan")
        return int(number) if isfinite(number) and number == int(number) else None
    except ValueError:
        return None


def polygons_of(shape: list[Any], h: int | None, w: int | None) -> tuple[list[list[float]], list[str]]:
    """Polygons as lists x, y, x, y, ...; and why parts were left out.

    Args:
        shape: as in the file.
        h, w: the image's size, if it is known.

    Raises:
        ValueError, TypeError: no part is left.
    """
    if shape and not isinstance(shape[0], list):  # one polygon, flat
        shape = [shape]
    elif len(shape) > 2 and all(isinstance(p, list) and len(p) == 2 and not isinstance(p[0], list) for p in shape):
        shape = [shape]  # one polygon, of points
    kept, why = [], []
    for part in shape:
        try:
            kept.append(_polygon(part, h, w))
        except ERRORS as error:
            why.append(shortened(error))
    if not kept:
        raise ValueError(why[0] if why else "a polygon needs three or more points (x, y)")
    return kept, why


def _polygon(part: Any, h: int | None, w: int | None) -> list[float]:
    points = [v for point in part for v in (point if isinstance(point, list) else [point])]
    polygon = [float(v) for v in points]
    if len(polygon) < 6 or len(polygon) % 2:
        raise ValueError("a polygon needs three or more points (x, y)")
    if not all(isfinite(v) for v in polygon):
        raise ValueError("a polygon lies far outside the image")
    if h is not None and w is not None and not all(abs(v) <= 2 * (h + w) for v in polygon):
        raise ValueError("a polygon lies far outside the image")  # pycocotools would crash
    return polygon


def runs_of(shape: dict[str, Any], h: int | None, w: int | None) -> dict[str, Any]:
    """Run lengths as pycocotools takes them, `counts` a list or compressed text.

    Raises:
        KeyError, TypeError, ValueError: not for an image of this size, or no run lengths.
    """
    size = [n for n in map(whole, shape["size"]) if n is not None]
    if len(size) != 2:
        raise ValueError("the size of run lengths is no height and width")
    if h is not None and w is not None and size != [h, w]:
        raise ValueError(f"run lengths are for {size} (height, width), the image has {[h, w]}")
    counts = shape["counts"]
    if isinstance(counts, list):
        counts = [-1 if n is None else n for n in map(whole, counts)]
        if sum(counts) != size[0] * size[1] or min(counts, default=-1) < 0:
            raise ValueError("run lengths do not add up to the image")
    elif not isinstance(counts, str):
        raise ValueError("run lengths are neither a list nor text")
    return {"size": size, "counts": counts}


def problems_of(item: dict[str, Any], h: int | None, w: int | None) -> tuple[bool, list[str]]:
    """Whether an annotation can be drawn as far as that is known without pycocotools, and what is left out of it."""
    if "segmentation" not in item:
        return False, ["it has no segmentation"]
    shape = item["segmentation"]
    try:
        if isinstance(shape, list):
            return True, polygons_of(shape, h, w)[1]
        runs_of(shape, h, w)
        return True, []
    except KeyError as error:
        return False, [f"its run lengths have no {error}"]
    except ERRORS as error:
        return False, [shortened(error)]


def pixels_of(item: dict[str, Any], h: int, w: int, where: str) -> np.ndarray:
    """One annotation as uint8 (h, w) of 0 and 1: polygons, run lengths as a list, or compressed run lengths.

    Raises:
        DatasetError: the segmentation is of no known form, or is for another image size.
    """
    coded = pycocotools()
    try:
        shape = item["segmentation"]
        if isinstance(shape, list):
            rle = coded.merge(coded.frPyObjects(polygons_of(shape, h, w)[0], h, w))
        else:
            rle = runs_of(shape, h, w)
            if isinstance(rle["counts"], list):
                rle = coded.frPyObjects(rle, h, w)
        return np.asarray(coded.decode(rle))
    except ERRORS as error:
        raise DatasetError(f"The segmentation of {where} cannot be read: {shortened(error)}.") from error


def pycocotools() -> Any:
    """The module that draws polygons and run lengths.

    Raises:
        MissingRuntimeError: not installed.
    """
    return regions.pycocotools("COCO annotations")
