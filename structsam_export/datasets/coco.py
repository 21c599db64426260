"""COCO instances: `annotations/instances_*.json` with the images beside it, and what other tools make of that.

Crowd regions (`iscrowd`) are left out, and with them images that have no other object. Objects are in the order of
their annotation ids. Polygons and run lengths become pixels as pycocotools does it; an object too small to cover a
pixel is left out, an image whose objects all are is an error. An object that cannot be drawn is left out, too, and the
data set's notes say so; it does not cost the image, nor the file.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote

import numpy as np

from structsam_export.datasets.base import Dataset, Layout, Sample, data_root, few, say
from structsam_export.datasets.coco_shapes import pixels_of, problems_of, pycocotools, whole
from structsam_export.datasets.pictures import is_lying, photo_size, read_bytes, read_photo
from structsam_export.errors import DatasetError, shortened

USUAL = "val2017"
BESIDE = "_annotations.coco.json"  # Roboflow's, among the images
LABEL_STUDIO = "result.json"
NO_INSTANCES = (
    "is not a COCO instances file: it needs `images` (id, file_name) and `annotations` (id, image_id, segmentation). "
    "Files with captions, key points, boxes or predictions do not have them."
)


@dataclass(frozen=True, kw_only=True)
class CocoSample(Sample):
    """One image with its annotations, as the JSON has them."""

    photo: Path
    source: Path
    annotations: tuple[dict[str, Any], ...] = field(hash=False)
    listed: tuple[int | None, int | None]  # (height, width) as the JSON has them, None where it does not

    def image(self) -> np.ndarray:
        return read_photo(self.photo)

    def size(self) -> tuple[int, int]:
        return photo_size(self.photo)

    def sideways(self) -> bool:
        return is_lying(self.photo)

    def stored(self) -> np.ndarray:
        h, w = self.size()
        if any(said not in (None, real) for said, real in zip(self.listed, (h, w))):
            stored = self.listed == (w, h) and self.sideways()
            raise DatasetError(
                f"{self.photo} is {w} x {h} pixels (turned as its EXIF says), but {self.source} was made for "
                f"{self.listed[1]} x {self.listed[0]}"
                + (
                    ", the image as stored. Remove its EXIF orientation: the annotations were made without turning it."
                    if stored
                    else ". Take the original image."
                )
            )
        masks, why = [], []
        for item in self.annotations:
            try:
                masks.append(pixels_of(item, h, w, f"annotation {item.get('id')} in {self.source}"))
            except DatasetError as error:  # known only with the image's size
                why.append(error)
        if why and not masks:
            raise why[0]
        for reason in why:
            say(f"left out: {reason}")
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
train/                                 or this folder, as Roboflow has it
  _annotations.coco.json  *.jpg
project/                               or this one, as Label Studio has it
  result.json  images/*.jpg
"""
    SOURCE = (
        "Get it from https://cocodataset.org/#download: http://images.cocodataset.org/zips/val2017.zip and "
        "http://images.cocodataset.org/annotations/annotations_trainval2017.zip, unpacked into one folder."
    )
    RECOGNISED = True

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        if folder.suffix == ".json" and not folder.is_dir():
            return True
        if any((folder / "annotations").glob("instances_*.json")) or (folder / BESIDE).is_file():
            return True
        others = any((folder / name).is_dir() for name in ("masks", "labels"))
        return (folder / LABEL_STUDIO).is_file() and (folder / "images").is_dir() and not others

    @classmethod
    def open(cls, name: str, root: Path | None) -> Dataset:
        place = root if root is not None else data_root(None) / "coco"
        source = _annotation_file(cls, place)
        table = read_table(source)
        notes = list(table.notes)
        objects = _objects(table, notes)
        strays = [key for key in objects if key not in table.images]
        if strays and len(strays) == len(objects):
            raise DatasetError(f"{source} annotates images that it does not list: image_id {few(strays)}.")
        if strays:
            notes.append(f"objects of images that are not listed: image_id {few(strays)}")
        entries = {key: entry for key, entry in table.images.items() if key in objects}
        if not entries:
            raise DatasetError(f"{source} has no object that is not a crowd region. Use an instances_*.json file.")
        files = _files(cls, source, {key: entry["file_name"] for key, entry in entries.items()})
        pycocotools()
        samples = [
            CocoSample(
                name=path.stem,
                photo=path,
                source=source,
                annotations=tuple(objects[key]),
                listed=_listed(entries[key]),
            )
            for key, path in files.items()
        ]
        return Dataset(name, samples, [f"{source}: left out {note}." for note in notes])


@dataclass(frozen=True)
class Table:
    """An annotation file: `images` by id as text, `annotations` with sound ids, and what was left out."""

    images: dict[str, dict[str, Any]]
    annotations: list[dict[str, Any]]
    notes: tuple[str, ...]


def read_table(source: Path) -> Table:
    """A COCO annotation file; ids are compared by value, so that 1 and "1" are the same.

    Raises:
        DatasetError: unreadable, no JSON, or no instances in COCO's form.
    """
    try:
        table = json.loads(read_bytes(source))
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{source} is not JSON ({shortened(error)}). Download it again.") from error
    images, annotations = (table.get(n) if isinstance(table, dict) else None for n in ("images", "annotations"))
    if not isinstance(images, list) or not isinstance(annotations, list):
        raise DatasetError(f"{source} {NO_INSTANCES}")
    sound = [e for e in images if isinstance(e, dict) and key_of(e.get("id")) and _is_name(e.get("file_name"))]
    owned = [a for a in annotations if isinstance(a, dict) and key_of(a.get("image_id"))]
    drawn = any("segmentation" in a for a in owned)
    if (images and not sound) or (annotations and not (owned and drawn)):
        raise DatasetError(f"{source} {NO_INSTANCES}")
    notes = []
    if lost := len(images) - len(sound):
        notes.append(f"{lost} images without id or file_name")
    if lost := len(annotations) - len(owned):
        notes.append(f"{lost} objects without image_id")
    return Table({key_of(entry["id"]): entry for entry in sound}, owned, tuple(notes))


def key_of(value: Any) -> str:
    """An id as text; empty if it is none."""
    if isinstance(value, bool) or not isinstance(value, (int, float, str)):
        return ""
    number = whole(value)
    return shortened(value) if number is None else str(number)


def _is_name(value: Any) -> bool:
    return isinstance(value, str) and bool(value.strip()) and "\0" not in value


def _listed(entry: dict[str, Any]) -> tuple[int | None, int | None]:
    return whole(entry.get("height")), whole(entry.get("width"))


def _objects(table: Table, notes: list[str]) -> dict[str, list[dict[str, Any]]]:
    """The annotations of every image that can be drawn, by the image's id and in the order of their own.

    Those of an image that has no other are kept, so that the image is an error of its own and not forgotten.
    """
    objects: dict[str, list[dict[str, Any]]] = {}
    for _, item in sorted(enumerate(table.annotations), key=lambda pair: (_order(pair[1].get("id")), pair[0])):
        if not whole(item.get("iscrowd")):
            objects.setdefault(key_of(item["image_id"]), []).append(item)
    kept = {}
    for key, items in objects.items():
        size = _listed(table.images.get(key, {}))
        found = [(item, *problems_of(item, *size)) for item in items]
        sound = [item for item, fine, _ in found if fine]
        kept[key] = sound or [item for item in items if "segmentation" in item]
        for item, fine, why in found:
            if why and (sound or not kept[key]):
                part = "parts of " if fine else ""
                notes.append(f"{part}annotation {shortened(item.get('id'))} of image {key}: {why[0].rstrip('.')}")
    return {key: items for key, items in kept.items() if items}


def _order(value: Any) -> tuple[int, int, str]:
    number = whole(value)
    return (1, 0, str(value)) if number is None else (0, number, "")


def _annotation_file(layout: type[Layout], place: Path) -> Path:
    if place.suffix == ".json":
        if place.is_file():
            return place
        raise layout.missing(place.parent, f"No {place.name}")
    found = sorted((place / "annotations").glob("instances_*.json"))
    usual = [path for path in found if path.stem == f"instances_{USUAL}"]
    if not found:
        beside = [place / name for name in (BESIDE, LABEL_STUDIO) if (place / name).is_file()]
        if not beside:
            raise layout.missing(place, "No annotations/instances_*.json")
        return beside[0]
    if len(found) > 1 and not usual:
        raise DatasetError(f"{place} has several annotation files: {few(p.name for p in found)}. Pass one of them.")
    return (usual or found)[0]


def _files(layout: type[Layout], source: Path, names: dict[str, str]) -> dict[str, Path]:
    """Where the images are, by id.

    Raises:
        DatasetError: some are nowhere, or two names lead to one file.
    """
    root = source.parent.parent if source.parent.name == "annotations" else source.parent
    split = source.stem.removeprefix("instances_")
    usual = [folder for folder in (root / split, root / "images" / split, root / "images") if folder.is_dir()]
    folders = list(dict.fromkeys([*usual, source.parent, root]))
    found = {key: file_of(name, folders) for key, name in names.items()}
    lost = [shortened(names[key]) for key, path in found.items() if path is None]
    if lost and not usual and len(lost) == len(names):
        raise layout.missing(root, f"No {split}/, images/{split}/ or images/, and no image of {source.name}")
    if lost:
        places = ", ".join(map(str, reversed(folders)))
        raise DatasetError(f"Images of {source} that are not in {places}: {few(lost)}.\n{layout.SOURCE}")
    paths = {key: path for key, path in found.items() if path is not None}
    owners: dict[Path, str] = {}
    for key, path in paths.items():
        if owners.setdefault(path, names[key]) != names[key]:
            both = f"{shortened(owners[path])} and {shortened(names[key])}"
            raise DatasetError(f"{source} names {both}, and only {path} is there. Keep the folders they lie in.")
    return paths


def file_of(name: str, folders: list[Path]) -> Path | None:
    """The file that a `file_name` means: below one of the folders, with as many of its own folders as are there.

    Folders may be written with backslashes and names as in URLs; nothing outside the folders is ever taken.
    """
    for text in dict.fromkeys((name, name.replace("\\", "/"), unquote(name.replace("\\", "/")))):
        parts = [part for part in PurePosixPath(text).parts if part not in ("/", ".", "..", "//")]
        for first in range(len(parts)):
            for folder in folders:
                path = folder.joinpath(*parts[first:])
                try:
                    if path.is_file():
                        return path
                except (OSError, ValueError):
                    continue
    return None
