"""Writes one photo and its mask."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from photos.masks import MASKS
from photos.prompts import PHOTOS
from PIL import Image
from skimage import data

LONGEST = 640


def store(name: str, folder: Path) -> dict[str, Any]:
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
