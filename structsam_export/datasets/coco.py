"""COCO instances: `annotations/instances_*.json` with the images beside it.

Crowd regions (`iscrowd`) are left out, and with them images that have no other object. Objects are in the order of
their annotation ids. Polygons and run lengths become pixels as pycocotools does it; an object too small to cover a
pixel is left out, an image whose objects all are is an error.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from structsam_export.datasets.base import Dataset, Layout, Sample, data_root, few
from structsam_export.datasets.pictures import photo_size, read_bytes, read_photo
from structsam_export.errors import DatasetError, MissingRuntimeError

USUAL = "val2017"
KEYS = ("images", "annotations")


@dataclass(frozen=True, kw_only=True)
class CocoSample(Sample):
    """One image with its annotations, as the JSON has them."""

    photo: Path
    source: Path
    annotations: tuple[dict[str, Any], ...] = field(hash=False)
    listed: tuple[Any, Any]  # (height, width) as the JSON has them, None where it does not

    def image(self) -> np.ndarray:
        return read_photo(self.photo)

    def size(self) -> tuple[int, int]:
        return photo_size(self.photo)

    def stored(self) -> np.ndarray:
        h, w = self.size()
        if any(said not in (None, real) for said, real in zip(self.listed, (h, w))):
            raise DatasetError(
                f"{self.photo} is {w} x {h} pixels (turned as its EXIF says), but {self.source} was made for "
                f"{self.listed[1]} x {self.listed[0]}. Take the original image."
            )
        masks = [pixels_of(item, h, w, f"annotation {item['id']} in {self.source}") for item in self.annotations]
        drawn = [mask for mask in masks if mask.any()]
        return np.stack(drawn) * np.uint8(255) if drawn else np.zeros((0, h, w), np.uint8)

    def mask_names(self, count: int) -> list[str]:
        return [f"{self.photo.name} in {self.source}"] * max(count, 1)

    def stored_bytes(self) -> Iterator[bytes]:
        yield read_bytes(self.photo)
        yield from (json.dumps(item["segmentation"], sort_keys=True).encode() for item in self.annotations)


class Coco(Layout):
    """Images and an annotation file."""

    TITLE = "COCO"
    TREE = """
coco/                                  the folder to pass, or $STRUCTSAM_DATA/coco, or the .json file itself
  annotations/instances_val2017.json   of several files this one is taken
  val2017/*.jpg                        named as the file is; or images/val2017/, or images/
"""
    SOURCE = (
        "Get it from https://cocodataset.org/#download: http://images.cocodataset.org/zips/val2017.zip and "
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip, unpacked into one folder."
    )
    RECOGNISED = True

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return folder.suffix == ".json" or any((folder / "annotations").glob("instances_*.json"))

    @classmethod
    def open(cls, name: str, root: Path | None) -> Dataset:
        place = root if root is not None else data_root(None) / "coco"
        source = _annotation_file(cls, place)
        table = read_table(source)
        images = _image_folder(cls, source)
        objects: dict[Any, list[dict[str, Any]]] = {}
        for item in sorted(table["annotations"], key=lambda item: item["id"]):
            if not item.get("iscrowd"):
                objects.setdefault(item["image_id"], []).append(item)
        entries = {entry["id"]: entry for entry in table["images"] if entry["id"] in objects}
        files = {key: images / entry["file_name"] for key, entry in entries.items()}
        strays = [str(key) for key in objects if key not in files]
        if strays:
            raise DatasetError(f"{source} annotates images that it does not list: image_id {few(strays)}.")
        if not files:
            raise DatasetError(f"{source} has no object that is not a crowd region. Use an instances_*.json file.")
        lost = [path.name for path in files.values() if not path.is_file()]
        if lost:
            raise DatasetError(f"Images of {source} that are not in {images}: {few(lost)}.\n{cls.SOURCE}")
        _pycocotools()
        return Dataset(
            name,
            [
                CocoSample(
                    name=path.stem,
                    photo=path,
                    source=source,
                    annotations=tuple(objects[key]),
                    listed=(entries[key].get("height"), entries[key].get("width")),
                )
                for key, path in files.items()
            ],
        )


def _annotation_file(layout: type[Layout], place: Path) -> Path:
    if place.suffix == ".json":
        if place.is_file():
            return place
        raise layout.missing(place.parent, f"No {place.name}")
    found = sorted((place / "annotations").glob("instances_*.json"))
    usual = [path for path in found if path.stem == f"instances_{USUAL}"]
    if not found:
        raise layout.missing(place, "No annotations/instances_*.json")
    if len(found) > 1 and not usual:
        raise DatasetError(f"{place} has several annotation files: {few(p.name for p in found)}. Pass one of them.")
    return (usual or found)[0]


def _image_folder(layout: type[Layout], source: Path) -> Path:
    root = source.parent.parent if source.parent.name == "annotations" else source.parent
    split = source.stem.removeprefix("instances_")
    for folder in (root / split, root / "images" / split, root / "images"):
        if folder.is_dir():
            return folder
    raise layout.missing(root, f"No {split}/, images/{split}/ or images/")


def read_table(source: Path) -> dict[str, Any]:
    """A COCO annotation file.

    Raises:
        DatasetError: unreadable, no JSON, or not COCO's keys.
    """
    try:
        table = json.loads(read_bytes(source))
    except ValueError as error:
        raise DatasetError(f"{source} is not JSON ({error}). Download it again.") from error
    try:
        sound = all(isinstance(table[key], list) for key in KEYS)
        for entry in table["images"]:
            sound &= isinstance(entry["file_name"], str) and isinstance(entry["id"], (int, str))
        for item in table["annotations"]:
            sound &= isinstance(item["id"], int) and isinstance(item["image_id"], (int, str))
            sound &= "segmentation" in item
    except (KeyError, TypeError, AttributeError):
        sound = False
    if not sound:
        raise DatasetError(
            f"{source} is not a COCO instances file: it needs `images` (id, file_name) and `annotations` (id, "
            "image_id, segmentation). Files with captions, key points or predictions do not have them."
        )
    typed: dict[str, Any] = table
    return typed


def pixels_of(item: dict[str, Any], h: int, w: int, where: str) -> np.ndarray:
    """One annotation as uint8 (h, w) of 0 and 1: polygons, run lengths as a list, or compressed run lengths.

    Raises:
        DatasetError: the segmentation is of no known form, or is for another image size.
    """
    coded = _pycocotools()
    shape = item["segmentation"]
    try:
        if isinstance(shape, list):
            if not shape or any(len(polygon) < 6 or len(polygon) % 2 for polygon in shape):
                raise ValueError("a polygon needs three or more points (x, y)")
            polygons = [[float(v) for v in polygon] for polygon in shape]
            if not all(abs(v) <= 2 * (h + w) for polygon in polygons for v in polygon):
                raise ValueError("a polygon lies far outside the image")  # pycocotools would crash
            rle = coded.merge(coded.frPyObjects(polygons, h, w))
        else:
            if list(shape["size"]) != [h, w]:
                raise ValueError(f"run lengths are for {shape['size']} (height, width), the image has {[h, w]}")
            rle = shape
            if isinstance(shape["counts"], list):
                if sum(shape["counts"]) != h * w or min(shape["counts"]) < 0:
                    raise ValueError("run lengths do not add up to the image")
                rle = coded.frPyObjects(shape, h, w)
        return np.asarray(coded.decode(rle))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DatasetError(f"The segmentation of {where} cannot be read: {error}.") from error


def _pycocotools() -> Any:
    try:
        from pycocotools import mask
    except ImportError as error:
        raise MissingRuntimeError(
            f"COCO annotations need pycocotools ({error}). Install it: pip install 'structsam-export[coco]'."
        ) from error
    return mask
