"""A folder of the user: photos in `images/`, grey or binary PNG masks in `masks/`.

Rules. For the photo `images/cat.jpg` exactly one of

    masks/cat.png   or  masks/cat_mask.png                  one object
    masks/cat_0.png, cat_1.png ...  or  cat_mask_0.png ...  one object each, in the order of the numbers
    masks/cat/*.png                                         one object each, in the order of the names

A mask file whose stem is a photo's stem belongs to that photo, even where its name ends in a number. Values above 128
are the object, so a mask drawn with 0 and 1 is an error, not an object. Images whose values number the objects do not
go here but into `labels/` (see `labels.py`): the folder's name says which it is, the pixels are never asked.
"""

from __future__ import annotations

import re
from pathlib import Path

from structsam_export.datasets.base import Dataset, Layout, few, natural, own_folder
from structsam_export.datasets.pictures import PHOTOS, PictureSample, listed, pictures
from structsam_export.errors import DatasetError


class Folder(Layout):
    """`images/` and `masks/`."""

    TITLE = "A folder of photos and masks"
    TREE = """
mine/
  images/cat.jpg  dog.png  owl.webp
  masks/cat.png            8-bit grey, the object above 128
  masks/dog_0.png  dog_1.png    several objects, one file each
  masks/owl/wing.png  beak.png  or in a folder of the photo's name
"""
    SOURCE = "Masks are 8-bit grey PNG files of the photo's size, 0 outside the object and 255 inside."
    RECOGNISED = True

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        both = (folder / "images").is_dir() and (folder / "masks").is_dir()
        return both and folder.resolve().name not in ("COIFT", "HRSOD")  # those are HQ-SAM's

    @classmethod
    def open(cls, name: str, root: Path | None) -> Dataset:
        root = own_folder(name, root)
        if not (root / "images").is_dir() or not (root / "masks").is_dir():
            raise cls.missing(root, "No images/ and masks/")
        images = pictures(root / "images")
        if not images:
            raise cls.missing(root / "images", "No pictures")
        owned = masks_of(root / "images", images, root / "masks")
        return Dataset(name, [PictureSample(name=p.stem, photo=p, mask_files=owned[p.stem]) for p in images])


def masks_of(image_folder: Path, images: list[Path], mask_folder: Path) -> dict[str, tuple[Path, ...]]:
    """The mask files of every photo, by the photo's stem, in the order of their numbers or names.

    Raises:
        DatasetError: photos without masks, masks without photos, a mask that is no PNG, or a photo whose masks are
            stored in two ways.
    """
    stems = {path.stem for path in images}
    styles: dict[str, dict[str, list[Path]]] = {stem: {} for stem in stems}
    orphans, wrong = [], []
    for path in listed(mask_folder):
        if path.is_dir():
            inside = pictures(path)
            wrong += [f"{path.name}/{p.name}" for p in inside if p.suffix.lower() != ".png"]
            owner, style = path.name, f"the folder {path.name}/"
        elif path.suffix.lower() == ".png":
            inside = [path]
            owner, style = _owner(path.stem, stems)
        else:
            if path.suffix.lower() in PHOTOS:
                wrong.append(path.name)
            continue
        if owner not in stems or not inside:
            orphans.append(path.name)
        else:
            styles[owner].setdefault(style, []).extend(inside)
    if wrong:
        raise DatasetError(f"Masks in {mask_folder} that are not PNG files: {few(wrong)}. Save them as grey PNG.")
    if orphans:
        raise DatasetError(f"Masks in {mask_folder} without an image in {image_folder}, or empty: {few(orphans)}.")
    alone = [path.name for path in images if not styles[path.stem]]
    if alone:
        raise DatasetError(f"Images in {image_folder} without a mask in {mask_folder}: {few(alone)}.")
    for stem, found in styles.items():
        if len(found) > 1:
            raise DatasetError(f"The masks of '{stem}' in {mask_folder} are stored twice: {few(found)}. Keep one.")
    return {
        stem: tuple(sorted(next(iter(found.values())), key=lambda p: natural(p.stem))) for stem, found in styles.items()
    }


def _owner(stem: str, stems: set[str]) -> tuple[str, str]:
    """The photo a mask file belongs to, and how its masks are stored."""
    if stem in stems:
        return stem, f"{stem}.png"
    for pattern, style in ((r"(.+)_mask", "_mask.png"), (r"(.+)_mask_\d+", "_mask_N.png"), (r"(.+)_\d+", "_N.png")):
        match = re.fullmatch(pattern, stem)
        if match and match[1] in stems:
            return match[1], f"{match[1]}{style}"
    return stem, ""
