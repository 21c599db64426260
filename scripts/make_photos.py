"""Remake the bundled photos: JPEGs, masks and prompts.json, from the images inside scikit-image.

    python scripts/make_photos.py [FOLDER]

Needs scikit-image; writes into the package unless FOLDER is given. Prompts are in pixels of the stored JPEG, measured
from its top left corner. CREDITS.md, beside the photos, names sources, licences and the versions that made the files.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from scipy import ndimage
from skimage import data, draw, filters, measure, morphology, segmentation

FOLDER = Path(__file__).resolve().parent.parent / "structsam_export" / "assets" / "photos"
LONGEST = 640

# A prompt is (name, place) or (name, place, label in the mask); a place is a point (x, y), a box (x0, y0, x1, y1), or
# None: the tight box of that label.
# fmt: off
PHOTOS: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
    "astronaut": ("Astronaut Eileen Collins", [
        ("head and neck", (153, 16, 302, 190)), ("helmet", (277, 343, 512, 512)), ("mission patch", None, 1),
        ("mission patch, point", (170, 405), 1), ("face", (219, 125)), ("name tag", (290, 352))]),
    "camera": ("Man with a video camera", [
        ("man", (0, 62, 332, 512)), ("video camera", (252, 138, 326, 186)), ("tower", (411, 116, 433, 193)),
        ("coat", (100, 260)), ("tower, point", (422, 165))]),
    "cell": ("Cell floating in saline", [("cell", None, 1), ("cell, point", (420, 360), 1)]),
    "chelsea": ("Chelsea the cat", [
        ("eye on the left", (135, 85, 206, 148)), ("eye on the right", (296, 109, 344, 164)),
        ("nose", (235, 226, 293, 266)), ("iris", (150, 116)), ("nose, point", (272, 238))]),
    "coffee": ("Cup of coffee", [
        ("cup", None, 1), ("saucer", (76, 68, 479, 390)), ("spoon", (325, 66, 425, 326)),
        ("coffee", (290, 160)), ("spoon, point", (350, 290))]),
    "coins": ("Greek coins", [
        ("row 1, coin 6", None, 1), ("row 2, coin 4", None, 9), ("row 3, coin 2", None, 16),
        ("row 4, coin 5", None, 21), ("row 1, coin 1, point", (45, 55), 5), ("row 3, coin 6, point", (350, 190), 13)]),
    "retina": ("Retina of a left eye", [
        ("optic disc", (57, 250, 143, 348)), ("fundus", (4, 3, 635, 635)),
        ("optic disc, point", (115, 300)), ("macula", (321, 317))]),
}
# fmt: on
CUP = """284,18 259,20 240,25 220,33.5 203,47 189.5,60.5 178.8,78.5 173.3,97 172.5,112 173,125 173,144 176,166 180,184
185,197 190,208 199,220 209,229 218,235 206,253 200,263 197,276 196,288 198,295 205,302 216,308 223,309 231,301 240,297
248,289 257,278 258,282 272,284 288,285 304,282 320,273 328,266 331,261 335,257 340,252 346,248 351,242 355,238 360,232
367,226 376,217 382,210 387,201 392,191 397,180 400.5,170 403.5,160 406,150 407.5,140 409,128 408.5,115 406,99
399.5,79 389.5,65 374,50 359,38 340,28.5 320,22 303,19"""


def polygon(shape: tuple[int, int], text: str) -> np.ndarray:
    """Fill a polygon given as "x,y x,y ..."; pixel centres lie at halves."""
    xy = np.array([p.split(",") for p in text.split()], float)
    return draw.polygon2mask(shape, xy[:, ::-1] - 0.5)


def disk(shape: tuple[int, int], x: float, y: float, radius: float) -> np.ndarray:
    """Fill a circle."""
    ys, xs = np.indices(shape) + 0.5
    return (xs - x) ** 2 + (ys - y) ** 2 < radius**2


def coins(grey: np.ndarray) -> np.ndarray:
    """The coins of scikit-image's watershed example, smoothed; numbered by their topmost pixel."""
    markers = np.where(grey > 150, 2, np.where(grey < 30, 1, 0)).astype(np.int32)
    inside = ndimage.binary_fill_holes(segmentation.watershed(filters.sobel(grey), markers) == 2)
    labels = measure.label(morphology.opening(inside, morphology.disk(2)))
    return segmentation.relabel_sequential(morphology.remove_small_objects(labels, max_size=300))[0]


MASKS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "astronaut": lambda grey: disk(grey.shape, 170.6, 385.5, 37.4),
    "cell": lambda grey: ndimage.binary_fill_holes(grey > 90),  # midway between the cell and the halo around it
    "coffee": lambda grey: polygon(grey.shape, CUP),
    "coins": coins,
}


def make(name: str, folder: Path) -> dict[str, Any]:
    """Write one photo and its mask; return its entry of prompts.json."""
    title, prompts = PHOTOS[name]
    image = Image.fromarray(getattr(data, name)()).convert("RGB")
    image.thumbnail((LONGEST, LONGEST), Image.Resampling.LANCZOS)
    image.save(folder / f"{name}.jpg", quality=90)
    mask, labels = None, np.zeros(0, np.uint8)
    if name in MASKS:
        mask, labels = f"{name}.mask.png", MASKS[name](np.asarray(image.convert("L"))).astype(np.uint8)
        Image.fromarray(labels).save(folder / mask, optimize=True)
    entries = []
    for what, place, *label in prompts:
        if place is None:
            ys, xs = np.nonzero(labels == label[0])
            place = [int(v) for v in (xs.min(), ys.min(), xs.max() + 1, ys.max() + 1)]
        entry = {"name": what, "point" if len(place) == 2 else "box": list(place)}
        entries.append(entry | ({"label": label[0]} if label else {}))
    return {"file": f"{name}.jpg", "title": title, "size": list(image.size), "mask": mask, "prompts": entries}


if __name__ == "__main__":
    target = Path(sys.argv[1]) if len(sys.argv) > 1 else FOLDER
    target.mkdir(parents=True, exist_ok=True)
    table = {"schema": 1, "photos": [make(name, target) for name in PHOTOS]}
    (target / "prompts.json").write_text(json.dumps(table, indent=1) + "\n")
