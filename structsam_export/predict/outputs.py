"""Files of predictions: masks as PNG, an overlay for each picture, and `predictions.json` with COCO's run lengths."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from structsam_export.predict.asked import Asked
from structsam_export.runtime.overlay import with_outlines

RECORDS = "predictions.json"
LONGEST = 100  # characters of a picture's name in names of files


def names_of(pictures: Sequence[Path]) -> list[str]:
    """A name for the files of each picture: its own without ending, and a number where two are alike."""
    found: list[str] = []
    taken: set[str] = set()
    for path in pictures:
        # Case does not tell files apart everywhere, and halves of surrogate pairs are no text.
        plain = re.sub(r"[^\w.\- ]", "_", path.stem)[:LONGEST] or "picture"
        name, number = plain, 2
        while name.casefold() in taken:
            name, number = f"{plain}-{number}", number + 1
        taken.add(name.casefold())
        found.append(name)
    return found


def write_picture(
    folder: Path,
    name: str,
    path: Path,
    image: np.ndarray,
    masks: Sequence[np.ndarray],
    records: Sequence[dict[str, Any]],
    asked: Asked,
) -> dict[str, Any]:
    """Masks and overlay of one picture.

    Args:
        folder: where they go.
        name: what they are called.
        path, image: the picture, uint8 (H, W, 3).
        masks, records: bool (H, W) each, and what is told of them.
        asked: prompts, drawn into the overlay.

    Returns:
        the picture's row of `predictions.json`.
    """
    from PIL import Image

    found = []
    for i, (mask, record) in enumerate(zip(masks, records)):
        file = f"{name}.mask-{i}.png"
        Image.fromarray(mask.astype(np.uint8) * 255).save(folder / file)
        found.append({"file": file, **record})
    shown = f"{name}.overlay.jpg"
    _with_prompts(Image.fromarray(with_outlines(image, masks)), asked).save(folder / shown, quality=90)
    height, width = image.shape[:2]
    return {"image": str(path), "height": height, "width": width, "overlay": shown, "masks": found}


def write_records(folder: Path, report: dict[str, Any]) -> None:
    """`predictions.json`."""
    (folder / RECORDS).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")


def _with_prompts(picture: Any, asked: Asked) -> Any:
    from PIL import ImageDraw

    pen, unit = ImageDraw.Draw(picture), max(picture.size) / 200
    for box in asked.boxes:
        pen.rectangle(box, outline="white", width=max(1, round(unit)))
    for x, y, label in asked.points:
        place = (x - 2 * unit, y - 2 * unit, x + 2 * unit, y + 2 * unit)
        pen.ellipse(place, fill="lime" if label else "red", outline="white")
    return picture
