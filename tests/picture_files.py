"""Picture files of kinds that Pillow does not write: 16-bit colours, planes, signed and float samples."""

from __future__ import annotations

import struct
import zlib

import numpy as np


def png16(values: np.ndarray) -> bytes:
    """A 16-bit PNG of (H, W, C): grey, grey with alpha, RGB, RGBA."""
    h, w, c = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", w, h, 16, {1: 0, 2: 4, 3: 2, 4: 6}[c], 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def tiff(values, *, planar=False, order="<", compression=1, photometric=None, orientation=1, pages=1, delta=False):
    """A TIFF of (H, W, C) in one strip, or one for each plane; every page is the same."""
    h, w, c = values.shape
    stored = np.diff(values, axis=1, prepend=values[:, :1] * 0) if delta else values
    stored = stored.astype(values.dtype.newbyteorder(order))
    strips = [stored[..., i].tobytes() for i in range(c)] if planar else [stored.tobytes()]
    strips = [zlib.compress(s) for s in strips] if compression == 8 else strips
    colour = (2 if c >= 3 else 1) if photometric is None else photometric
    kind = {"u": 1, "i": 2, "f": 3}[values.dtype.kind]
    bits = values.dtype.itemsize * 8
    shorts = {258: [bits] * c, 259: [compression], 262: [colour], 274: [orientation], 277: [c], 339: [kind] * c}
    shorts |= {284: [2 if planar else 1], 317: [2 if delta else 1]}
    shorts |= {338: [2] * (c - 3)} if c > 3 else {}
    longs = {256: [w], 257: [h], 273: [0] * len(strips), 278: [h], 279: [len(s) for s in strips]}
    tags = sorted([(t, 3, v) for t, v in shorts.items()] + [(t, 4, v) for t, v in longs.items()])
    data, begin = b"", 8
    for page in range(pages):
        beside = begin + 2 + 12 * len(tags) + 4
        size = sum(
            n if n > 4 else 0 for n in (len(v) * (2 if t == 3 else 4) + len(v) * 2 % 4 * (t == 3) for _, t, v in tags)
        )
        places, at = [], beside + size
        for strip in strips:
            places.append(at)
            at += len(strip)
        entries = extra = b""
        for tag, code, numbers in tags:
            numbers = places if tag == 273 else numbers
            packed = struct.pack(order + {3: "H", 4: "I"}[code] * len(numbers), *numbers)
            packed += b"\0" * (-len(packed) % 4)
            if len(packed) > 4:
                place = struct.pack(order + "I", beside + len(extra))
                extra += packed
            entries += struct.pack(order + "HHI", tag, code, len(numbers)) + (place if len(packed) > 4 else packed)
        assert len(extra) == size
        after = at if page + 1 < pages else 0
        data += struct.pack(order + "H", len(tags)) + entries + struct.pack(order + "I", after) + extra
        data += b"".join(strips)
        begin = at
    magic = b"II*\0" if order == "<" else b"MM\0*"
    return magic + struct.pack(order + "I", 8) + data
