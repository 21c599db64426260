"""Write the photographs inside Qt resource files (*.rcc) of a folder to another folder.

    python scripts/demo_model/unpack_rcc.py FROM TO

Pictures lie in an .rcc uncompressed, each behind its length in four big-endian bytes. Kept: opaque ones of at
least 400 px a side with many colours, which leaves drawings out. Files are named by the hash of their bytes.
"""

from __future__ import annotations

import hashlib
import io
import re
import sys
from pathlib import Path

import numpy as np
from PIL import Image

SIGNATURES = re.compile(rb"RIFF....WEBP|\xff\xd8\xff|\x89PNG\r\n\x1a\n", re.DOTALL)


def is_photo(data: bytes) -> bool:
    """True for an opaque picture with at least 400 px a side and more than 2000 colours in 64x64 of its pixels."""
    try:
        image = Image.open(io.BytesIO(data))
        image.load()
    except (OSError, SyntaxError, ValueError):
        return False
    if min(image.size) < 400 or "A" in image.mode and image.getchannel("A").getextrema()[0] < 255:
        return False
    small = image.convert("RGB").resize((64, 64), Image.Resampling.NEAREST)
    return len(np.unique(np.asarray(small).reshape(-1, 3), axis=0)) > 2000


def main(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for path in sorted(source.rglob("*.rcc")):
        data = path.read_bytes()
        for hit in SIGNATURES.finditer(data):
            length = int.from_bytes(data[hit.start() - 4 : hit.start()], "big")
            picture = data[hit.start() : hit.start() + length]
            if 10_000 < length == len(picture) and is_photo(picture):
                (target / (hashlib.sha1(picture).hexdigest()[:12] + ".img")).write_bytes(picture)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
