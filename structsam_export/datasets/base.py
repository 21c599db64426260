"""What every data set gives: named samples with an image, soft masks, hard masks and a digest."""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import ClassVar

import numpy as np

from structsam_export.errors import DatasetError, UsageError

THRESHOLD = 128  # a mask's pixel belongs to the object above this value, as HQ-SAM's evaluation has it
SHOWN = 5  # file names in a message


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One image and its objects; nothing is kept in memory.

    `name` is unique in its set and safe as a file name; `group` names the part of a set that results are reported for
    (empty: the set has no parts).
    """

    name: str
    group: str = ""

    def image(self) -> np.ndarray:
        """The image, uint8 RGB (H, W, 3), turned as its EXIF says.

        Raises:
            DatasetError: the file is missing or cannot be decoded.
        """
        raise NotImplementedError

    def alpha(self) -> np.ndarray:
        """The masks as stored, uint8 (K, H, W) from 0 to 255, K >= 1; hard masks are 0 and 255.

        Raises:
            DatasetError: missing or corrupt file, a mask of another size than the image, or one that is empty.
        """
        stored = self.stored()
        names = self.mask_names(len(stored))
        size = self.size()
        if stored.shape[1:] != size:
            cure = "Save the mask at the image's size."
            if stored.shape[:0:-1] == size and self.sideways():
                cure = (
                    "The mask has the size of the image as stored: it was drawn without turning it. Turn the mask, "
                    "too, or remove the image's EXIF orientation."
                )
            raise DatasetError(
                f"{names[0]} is {stored.shape[2]} x {stored.shape[1]} pixels, but its image is {size[1]} x {size[0]}"
                f" (after turning it as its EXIF says). {cure}"
            )
        if not len(stored):
            raise DatasetError(f"{names[0]} has no object: every pixel is background. Take it out of the set.")
        for mask, name in zip(stored, names):
            largest = int(mask.max())
            if largest <= THRESHOLD:
                why = "every pixel is 0" if largest == 0 else f"its largest value is {largest}, an object's is 255"
                raise DatasetError(f"{name} is an empty mask: {why} (above {THRESHOLD} counts). Correct or remove it.")
        return stored

    def masks(self) -> np.ndarray:
        """The objects, bool (K, H, W), K >= 1: where `alpha()` is above 128.

        Raises:
            DatasetError: as `alpha`.
        """
        return np.asarray(self.alpha() > THRESHOLD)

    def digest(self) -> str:
        """SHA-256 (hex) of the stored bytes of the image and its masks.

        Raises:
            DatasetError: a file cannot be read.
        """
        total = hashlib.sha256()
        for part in self.stored_bytes():
            total.update(len(part).to_bytes(8, "little"))
            total.update(part)
        return total.hexdigest()

    # What a layout fills in.

    def stored(self) -> np.ndarray:
        """`alpha` before it is checked."""
        raise NotImplementedError

    def size(self) -> tuple[int, int]:
        """(H, W) of the image."""
        h, w = self.image().shape[:2]
        return h, w

    def sideways(self) -> bool:
        """Whether the image is stored with width and height swapped, and turned by its EXIF orientation."""
        return False

    def mask_names(self, count: int) -> Sequence[str]:
        """What messages call the masks, `count` of them, at least one."""
        raise NotImplementedError

    def stored_bytes(self) -> Iterator[bytes]:
        """The bytes that `digest` covers."""
        raise NotImplementedError


class Dataset:
    """A named, sorted list of samples; `notes` says what was left out of them, a sentence each."""

    def __init__(self, name: str, samples: Iterable[Sample], notes: Iterable[str] = ()) -> None:
        """Sort the samples by name and make names unique and safe as file names."""
        self.name, self.notes = name, tuple(notes)
        self._samples = with_safe_names(samples)

    def __len__(self) -> int:
        return len(self._samples)

    def samples(self) -> list[Sample]:
        """Every sample, sorted by name: the same list on every machine. Decodes nothing."""
        return list(self._samples)


class Layout:
    """How a kind of data set lies on disk."""

    TITLE: ClassVar[str] = ""
    TREE: ClassVar[str] = ""  # the expected folders, drawn
    SOURCE: ClassVar[str] = ""  # where to get the data
    RECOGNISED: ClassVar[bool] = False  # a folder of the user can be told to have this layout

    @classmethod
    def open(cls, name: str, root: Path | None) -> Dataset:
        """List the samples below `root` (None: the usual place).

        Raises:
            DatasetError: data missing, or images and masks do not pair up.
        """
        raise NotImplementedError

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        """Does this folder have the layout?"""
        return False

    @classmethod
    def tree(cls) -> str:
        """The expected folders, indented."""
        return "\n".join("    " + line for line in cls.TREE.strip("\n").splitlines())

    @classmethod
    def missing(cls, place: Path, why: str) -> DatasetError:
        """The error for data that are not where they should be."""
        return DatasetError(f"{why} in {place}. {cls.TITLE} is expected like this:\n{cls.tree()}\n{cls.SOURCE}")


def data_root(root: Path | None) -> Path:
    """Where named data sets lie: `root`, else $STRUCTSAM_DATA, else `data`."""
    return root if root is not None else Path(os.environ.get("STRUCTSAM_DATA") or "data").expanduser()


def own_folder(name: str, root: Path | None) -> Path:
    """The folder of a layout that has no usual place.

    Raises:
        UsageError: none was passed.
    """
    if root is None:
        raise UsageError(f"Dataset '{name}' needs its folder: pass the folder itself in place of the name.")
    return root


@cache
def say(line: str) -> None:
    """Say on stderr, once, what is left out although it was only found while an image was read."""
    from structsam_export.console import note

    note(line)


def few(names: Iterable[str]) -> str:
    """The first few of some names, and how many there are in all."""
    names = sorted(names)
    more = f", ... ({len(names)} in all)" if len(names) > SHOWN else ""
    return ", ".join(names[:SHOWN]) + more


def natural(text: str) -> list[tuple[int, int, str]]:
    """Sort key by which `a_10` comes after `a_9`."""
    parts = re.split(r"(\d+)", text)
    return [(0, int(part), "") if part.isdecimal() else (1, 0, part) for part in parts if part]


def with_safe_names(samples: Iterable[Sample]) -> list[Sample]:
    """Sorted samples; characters other than letters, digits, `.`, `_` and `-` become `_`, equal names get `-2`."""
    seen: set[str] = set()
    out = []
    for sample in sorted(samples, key=lambda s: s.name):
        stem = re.sub(r"[^\w.-]+", "_", sample.name).strip(".") or "sample"
        name, count = stem, 1
        while name.lower() in seen:
            count += 1
            name = f"{stem}-{count}"
        seen.add(name.lower())
        out.append(replace(sample, name=name))
    return sorted(out, key=lambda s: s.name)
