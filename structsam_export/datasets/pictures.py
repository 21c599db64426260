"""Picture files as arrays: photos, grey masks and label images, with errors that name the file.

Photos are read by `runtime.pictures`, with its rules. Masks and labels, the same for every layout, turned as their own
EXIF says:

    mask    0..255 as stored, or 1-bit; 16 bits keep their upper eight
    labels  whole numbers as stored: 8-bit, 16-bit or palette indices; 0 is background
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from structsam_export import reading
from structsam_export.datasets.base import Sample, few
from structsam_export.errors import DatasetError
from structsam_export.runtime.pictures import DEEP, image_size, is_sideways, opened, read_image, upright
from structsam_export.runtime.tiff import Samples

if TYPE_CHECKING:
    from PIL.Image import Image

PHOTOS = {".jpg", ".jpeg", ".png", ".webp", ".tif", ".tiff", ".bmp"}


def listed(folder: Path) -> list[Path]:
    """What lies in a folder, sorted, without hidden files.

    Raises:
        DatasetError: it cannot be listed.
    """
    try:
        return sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise DatasetError(f"Cannot list {folder}: {error.strerror}.") from error


def pictures(folder: Path, kinds: set[str] = PHOTOS) -> list[Path]:
    """Picture files of a folder by extension, sorted; hidden files are left out.

    Raises:
        DatasetError: the folder cannot be listed, or two pictures differ by their extension only.
    """
    found = [p for p in listed(folder) if p.suffix.lower() in kinds and p.is_file()]
    seen: dict[str, Path] = {}
    for path in found:
        other = seen.setdefault(path.stem, path)
        if other is not path:
            raise DatasetError(f"{other} and {path.name} differ by their extension only. Keep one of them.")
    return found


def pair_up(images: list[Path], masks: list[Path], image_folder: Path, mask_folder: Path) -> list[tuple[Path, Path]]:
    """Images and masks of the same stem, in the images' order.

    Raises:
        DatasetError: an image has no mask or a mask no image; names the first few.
    """
    by_stem = {path.stem: path for path in masks}
    alone = [path.name for path in images if path.stem not in by_stem]
    if alone:
        raise DatasetError(f"Images in {image_folder} without a mask in {mask_folder}: {few(alone)}.")
    orphans = [by_stem[stem].name for stem in by_stem.keys() - {path.stem for path in images}]
    if orphans:
        raise DatasetError(f"Masks in {mask_folder} without an image in {image_folder}: {few(orphans)}.")
    return [(path, by_stem[path.stem]) for path in images]


def read_photo(path: Path) -> np.ndarray:
    """A photo as uint8 RGB (H, W, 3), as `runtime.pictures` reads every photo.

    Raises:
        DatasetError: missing or undecodable.
    """
    return read_image(path, "Image", DatasetError)


def photo_size(path: Path) -> tuple[int, int]:
    """(H, W) of a photo as `read_photo` gives it, read from its header.

    Raises:
        DatasetError: missing or undecodable.
    """
    return image_size(path, "Image", DatasetError)


def is_lying(path: Path) -> bool:
    """Whether a photo is stored with width and height swapped, and turned by its EXIF orientation.

    Raises:
        DatasetError: missing or undecodable.
    """
    return is_sideways(path, "Image", DatasetError)


@contextmanager
def _mask(path: Path, what: str) -> Iterator[Image]:
    """A decoded mask or label image, turned as its own EXIF says.

    Raises:
        DatasetError: missing or undecodable.
    """
    with opened(path, what, DatasetError) as image:
        assert not isinstance(image, Samples)
        yield upright(image)


def read_mask(path: Path, *, first_channel: bool = False) -> np.ndarray:
    """A grey or binary mask as stored, uint8 (H, W) from 0 to 255.

    Args:
        path: the file.
        first_channel: of a colour picture take the first channel, as HQ-SAM's loader does. Otherwise a colour picture
            has to be grey in fact, and an alpha channel has to be opaque.

    Raises:
        DatasetError: missing, undecodable, or a picture that is no grey mask.
    """
    with _mask(path, "Mask") as image:
        if image.mode in ("1", "L"):
            return np.asarray(image.convert("L"))
        if image.mode in DEEP:
            return _upper_byte(np.asarray(image), path)
        pixels = np.asarray(image.convert("RGBA"))
    if first_channel:
        return pixels[..., 0].copy()
    if (pixels[..., 3] != 255).any():
        raise DatasetError(f"Mask {path} has an alpha channel. Save the mask itself as an 8-bit grey PNG.")
    if (pixels[..., :1] != pixels[..., 1:3]).any():
        raise DatasetError(
            f"Mask {path} is a colour picture. Save each object as an 8-bit grey PNG, or put an image whose values "
            "number the objects into labels/ instead of masks/."
        )
    return pixels[..., 0].copy()


def _upper_byte(values: np.ndarray, path: Path) -> np.ndarray:
    if values.dtype.kind == "f" or values.min() < 0 or values.max() > 65535:
        raise DatasetError(f"Mask {path} has values outside 0..65535. Save it as an 8-bit grey PNG.")
    return (values.astype(np.uint32) >> 8).astype(np.uint8)


def read_labels(path: Path) -> np.ndarray:
    """A label image: whole numbers as stored (palette indices of a palette image), int32 (H, W).

    Raises:
        DatasetError: missing, undecodable, or a colour picture.
    """
    with _mask(path, "Labels") as image:
        if image.mode in ("1", "L", "P", "I", "I;16", "I;16B", "I;16L"):
            return np.asarray(image).astype(np.int32)
        raise DatasetError(
            f"Labels {path} are a {image.mode} picture. Save them as one channel of whole numbers: 0 for background, "
            "k for object k (8-bit, 16-bit or palette PNG)."
        )


def objects_of(labels: np.ndarray) -> np.ndarray:
    """Every value other than 0 as an object of its own, ascending: uint8 (K, H, W) of 0 and 255."""
    values = np.unique(labels)
    return np.where(labels[None] == values[values != 0][:, None, None], np.uint8(255), np.uint8(0))


def read_bytes(path: Path) -> bytes:
    """A whole file.

    Raises:
        DatasetError: it cannot be read.
    """
    return reading.read_bytes(path, "File", DatasetError)


@dataclass(frozen=True, kw_only=True)
class PictureSample(Sample):
    """A photo file with masks in files of their own: one label image, or one grey mask per object."""

    photo: Path
    mask_files: tuple[Path, ...]
    labels: bool = False
    first_channel: bool = False

    def image(self) -> np.ndarray:
        return read_photo(self.photo)

    def size(self) -> tuple[int, int]:
        return photo_size(self.photo)

    def sideways(self) -> bool:
        return is_lying(self.photo)

    def stored(self) -> np.ndarray:
        if self.labels:
            return objects_of(read_labels(self.mask_files[0]))
        masks = [read_mask(path, first_channel=self.first_channel) for path in self.mask_files]
        for mask, path in zip(masks, self.mask_files):
            if mask.shape != masks[0].shape:
                raise DatasetError(f"Masks {self.mask_files[0]} and {path.name} differ in size.")
        return np.stack(masks)

    def mask_names(self, count: int) -> list[str]:
        if self.labels:
            return [str(self.mask_files[0])] * max(count, 1)
        return [str(path) for path in self.mask_files]

    def stored_bytes(self) -> Iterator[bytes]:
        yield from (read_bytes(path) for path in (self.photo, *self.mask_files))
