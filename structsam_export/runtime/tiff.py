"""TIFF files that Pillow refuses or, worse, reads wrongly: signed, float or 64-bit colours, deep planes.

Their samples are read as stored, from strips that are not compressed or deflated; other TIFFs are left to Pillow.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

MAGIC = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
MOST = 10_000  # pages looked at
WIDTH, HEIGHT, BITS, COMPRESSION, PHOTOMETRIC, OFFSETS, ORIENTATION, CHANNELS = 256, 257, 258, 259, 262, 273, 274, 277
COUNTS, PLANES, PREDICTOR, TILES, FORMAT, SUBFILE = 279, 284, 317, 322, 339, 254
PLAIN, DEFLATED = (1,), (8, 32946)
DEEP_GREY = ((12, "u"), (16, "u"), (16, "i"), (32, "i"), (32, "f"))  # (bits, kind) of grey that Pillow knows
FORMATS = {1: "u", 2: "i", 3: "f"}  # SampleFormat -> kind of NumPy's types


@dataclass(frozen=True)
class Samples:
    """How a TIFF's first page stores its pixels; `order` is "<" or ">"."""

    tags: dict[int, Any]
    order: str

    def tag(self, number: int, usual: int) -> int:
        """A tag of one number, or the first of several."""
        value = self.tags.get(number, usual)
        return int(value[0] if isinstance(value, tuple) else value)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Rows, columns, channels."""
        return self.tag(HEIGHT, 0), self.tag(WIDTH, 0), self.tag(CHANNELS, 1)

    @property
    def bits(self) -> int:
        return self.tag(BITS, 1)

    @property
    def kind(self) -> str:
        """Kind of NumPy's type: u, i, f; empty for others."""
        return FORMATS.get(self.tag(FORMAT, 1), "")

    @property
    def planar(self) -> bool:
        """Whether each channel is stored by itself."""
        return self.tag(PLANES, 1) == 2 and self.shape[2] > 1

    @property
    def plain(self) -> bool:
        """Whether `stored` reads these samples."""
        widths = self.tags.get(BITS, 1)
        even = not isinstance(widths, tuple) or len(set(widths)) == 1
        integers = self.tag(PREDICTOR, 1) == 2 and self.kind in ("u", "i")
        known = self.tag(COMPRESSION, 1) in (*PLAIN, *DEFLATED) and (self.tag(PREDICTOR, 1) == 1 or integers)
        grey_or_rgb = self.tag(PHOTOMETRIC, 1) in (0, 1, 2)
        return (
            known
            and even
            and grey_or_rgb
            and self.bits in (8, 16, 32, 64)
            and bool(self.kind)
            and TILES not in self.tags
        )

    @property
    def left_to_pillow(self) -> bool:
        """Whether Pillow reads these samples as they are.

        It takes deep planes for shallow ones, and the bytes of big-endian numbers in the wrong order once they were
        compressed.
        """
        deep, kind, in_planes = self.bits, self.kind, self.tag(PLANES, 1) == 2
        if deep <= 8 and kind != "i":
            return not (in_planes and self.plain)
        if self.shape[2] == 1:
            swapped = self.order == ">" and kind != "u" and self.tag(COMPRESSION, 1) not in PLAIN
            return (deep, kind) in DEEP_GREY and not swapped and not (in_planes and self.plain)
        return (deep, kind) == (16, "u") and not in_planes

    def __str__(self) -> str:
        kind = {"u": "whole numbers", "i": "signed numbers", "f": "floats"}.get(self.kind, "numbers")
        planes = ", in planes" if self.planar else ""
        channels = f"{self.shape[2]} channel{'s' if self.shape[2] > 1 else ''}"
        return f"{channels} of {self.bits}-bit {kind}{planes}, compression {self.tag(COMPRESSION, 1)}"


def pages(path: Path) -> tuple[Samples | None, int]:
    """How the first page stores its pixels, None if the file is no TIFF; and the number of pages.

    Reduced copies of a page (thumbnails, pyramids) do not count.

    Raises:
        Exception: whatever a damaged file leads to.
    """
    with path.open("rb") as file:
        if file.read(4) not in MAGIC:
            return None, 1
        file.seek(0)
        found = list(_directories(file))
        file.seek(0)
        order = "<" if file.read(1) == b"I" else ">"
    return Samples(found[0], order), sum(not _reduced(tags) for tags in found[1:]) + 1


def _reduced(tags: dict[int, Any]) -> bool:
    kind = tags.get(SUBFILE, 0)
    return bool(isinstance(kind, int) and kind & 1)


def _directories(file: BinaryIO) -> Iterator[dict[int, Any]]:
    from PIL.TiffImagePlugin import ImageFileDirectory_v2

    head = file.read(8)
    if 43 in (head[2], head[3]):
        head += file.read(8)
    directory, seen = ImageFileDirectory_v2(head), set[int]()
    while directory.next and directory.next not in seen and len(seen) < MOST:
        seen.add(directory.next)
        file.seek(directory.next)
        directory.load(file)
        yield dict(directory)
    if not seen:
        raise ValueError("it has no page")


def stored(path: Path, samples: Samples) -> np.ndarray:
    """The samples of the first page as stored, (H, W, C), turned as its orientation says.

    Raises:
        ValueError: samples that are not `plain`, such as tiles or LZW.
        Exception: whatever a damaged file leads to.
    """
    if not samples.plain:
        raise ValueError(f"it has {samples}, which is not read")
    (height, width, channels), method = samples.shape, samples.tag(COMPRESSION, 1)
    kind = np.dtype(f"{samples.order}{samples.kind}{samples.bits // 8}")
    offsets, counts = (_numbers(samples.tags[number]) for number in (OFFSETS, COUNTS))
    planes = channels if samples.planar else 1
    whole = width * height * channels * kind.itemsize
    with path.open("rb") as file:
        data = b"".join(_strip(file, offset, count, method, whole) for offset, count in zip(offsets, counts))
    values: np.ndarray = np.frombuffer(data, kind, whole // kind.itemsize)
    values = values.reshape(planes, height, width, channels // planes)
    values = np.concatenate(list(values), axis=-1)
    if samples.tag(PREDICTOR, 1) == 2:  # differences to the pixel on the left
        values = np.cumsum(values, axis=1, dtype=kind.newbyteorder("="))
    if samples.tag(PHOTOMETRIC, 1) == 0 and samples.kind == "u":  # 0 is white
        values = np.iinfo(kind).max - values
    return turned(values, samples.tag(ORIENTATION, 1))


def _numbers(value: Any) -> tuple[int, ...]:
    return value if isinstance(value, tuple) else (value,)


def _strip(file: BinaryIO, offset: int, count: int, method: int, most: int) -> bytes:
    file.seek(offset)
    data = file.read(min(count, most + 1024))
    return zlib.decompressobj().decompress(data, most) if method in DEFLATED else data


def turned(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """Pixels (H, W, ...) turned from how they are stored to how they are seen."""
    if orientation in (5, 6, 7, 8):
        pixels = pixels.swapaxes(0, 1)
    if orientation in (2, 3, 6, 7):
        pixels = pixels[:, ::-1]
    if orientation in (3, 4, 7, 8):
        pixels = pixels[::-1]
    return pixels
