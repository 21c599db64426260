"""Pictures that clients send: bytes in, pixels out, with limits that hold before anything is decoded."""

from __future__ import annotations

import base64
import binascii
import hashlib
import tempfile
from pathlib import Path

import numpy as np

from structsam_export.errors import ImageError, shortened
from structsam_export.runtime.pictures import image_size, read_image
from structsam_export.serve.refusals import Refused

# What files begin with: other formats are not even tried.
MAGIC = {
    "image/png": (b"\x89PNG\r\n\x1a\n",),
    "image/jpeg": (b"\xff\xd8\xff",),
    "image/tiff": (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"),
    "image/bmp": (b"BM",),
}
KNOWN = "PNG, JPEG, WebP, TIFF or BMP"
ID_LENGTH = 64


def id_of(data: bytes) -> str:
    """The name of a picture: SHA-256 of its file."""
    return hashlib.sha256(data).hexdigest()


def is_id(text: str) -> bool:
    """Whether a text can be a picture's name."""
    return len(text) == ID_LENGTH and set(text) <= set("0123456789abcdef")


def from_text(text: str) -> bytes:
    """The file in a data URI, or in plain base64.

    Raises:
        Refused: neither.
    """
    body = text
    if text.startswith("data:"):
        head, comma, body = text.partition(",")
        if not comma or not head.endswith(";base64"):
            raise Refused(400, "The picture's data URI is not base64. Send data:image/png;base64,...")
    try:
        return base64.b64decode(body, validate=True)
    except (binascii.Error, ValueError):
        raise Refused(
            400, f"'{shortened(text[:40])}' is neither a picture's name nor base64. Send the file to /v1/embed first."
        ) from None


def kind_of(data: bytes) -> str | None:
    """The media type of a file by its first bytes, if it is one that is read."""
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "image/webp"
    return next((kind for kind, begins in MAGIC.items() if data.startswith(begins)), None)


def read(data: bytes, most: int) -> np.ndarray:
    """A picture's pixels, uint8 RGB (H, W, 3).

    Args:
        data: the file.
        most: pixels it may have by its header, before it is decoded.

    Raises:
        Refused: empty, of another format, too large, or damaged.
    """
    if not data:
        raise Refused(400, f"There is no picture: the body is empty. Send a {KNOWN} file.")
    if kind_of(data) is None:
        raise Refused(415, f"This is no {KNOWN} file.")
    with tempfile.NamedTemporaryFile(prefix="structsam-") as file:
        file.write(data)
        file.flush()
        path = Path(file.name)
        try:
            height, width = image_size(path, "The picture")
            if height * width > most:
                raise Refused(
                    413,
                    f"The picture has {height * width / 1e6:.0f} million pixels; at most {most / 1e6:.0f} million are "
                    "read. Scale it down.",
                )
            return read_image(path, "The picture")
        except ImageError as error:
            reason = str(error).replace(f" {path}", "")
            raise Refused(413 if "million pixels" in reason else 400, reason) from None
