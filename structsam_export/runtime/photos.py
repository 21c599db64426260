"""The photos a run is validated on, with prompts and, where they exist, true masks."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from importlib import resources
from pathlib import Path

import numpy as np

from structsam_export.config import read_json
from structsam_export.runtime.pictures import read_image
from structsam_export.runtime.prompts import Prompt


@dataclass(frozen=True)
class Photo:
    """`image` uint8 (h, w, 3) and its prompts."""

    name: str
    image: np.ndarray
    prompts: tuple[Prompt, ...]


def bundled_photos(limit: int | None = None) -> list[Photo]:
    """The photos inside the package, at most `limit` of them."""
    folder = Path(str(resources.files("structsam_export"))) / "assets" / "photos"
    photos = []
    for entry in read_json(folder / "prompts.json")["photos"][:limit]:
        labels = None
        if entry.get("mask"):
            from PIL import Image

            labels = np.asarray(Image.open(folder / entry["mask"]))
        prompts = tuple(
            Prompt(
                p["name"],
                tuple(p["box"]) if "box" in p else None,
                tuple(p["point"]) if "point" in p else None,
                labels == p["label"] if labels is not None and "label" in p else None,
            )
            for p in entry["prompts"]
        )
        photos.append(Photo(Path(entry["file"]).stem, read_image(folder / entry["file"]), prompts))
    return photos


def user_photos(paths: Iterable[str]) -> list[Photo]:
    """Photos of the user: prompted by a 3x3 grid of points and a box around the middle.

    Raises:
        ImageError: a file is missing or unreadable.
    """
    photos = []
    for path in paths:
        image = read_image(Path(path))
        h, w = image.shape[:2]
        points = [(w * x / 4, h * y / 4) for y in (1, 2, 3) for x in (1, 2, 3)]
        prompts = [Prompt("middle", box=(w / 4, h / 4, 3 * w / 4, 3 * h / 4))]
        prompts += [Prompt(f"point {i + 1}", point=p) for i, p in enumerate(points)]
        photos.append(Photo(Path(path).stem, image, tuple(prompts)))
    return photos


def one_prompt_each(photos: Iterable[Photo], limit: int) -> list[Photo]:
    """Every prompt with a photo of its own, at most `limit`: a prompt-aware encoder runs once per prompt.

    First prompts of all photos come first.
    """
    photos = list(photos)
    most = max(len(photo.prompts) for photo in photos)
    singles = [
        replace(photo, name=f"{photo.name}: {photo.prompts[i].name}", prompts=(photo.prompts[i],))
        for i in range(most)
        for photo in photos
        if i < len(photo.prompts)
    ]
    return singles[:limit]
