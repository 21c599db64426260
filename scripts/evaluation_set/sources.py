"""Where pictures come from: packages that `scripts/demo_model/fetch_pictures.sh` leaves unpacked, and cut-outs."""

from __future__ import annotations

import bz2
from pathlib import Path

import numpy as np
from demo_model.scenes import is_held_out
from PIL import Image

BACKGROUNDS = {  # file in scikit-image's data folder, or in SciPy's misc folder
    "camera": "camera.png", "chelsea": "chelsea.png", "clock": "clock_motion.png", "coffee": "coffee.png",
    "coins": "coins.png", "face": "face.dat", "grass": "grass.png", "rocket": "rocket.jpg",
}  # fmt: skip
# Cut-outs left out: flat signs and plain shapes, which look like nothing in a photo; holy places; what is not for
# everyone.
LEFT_OUT = {
    "1f235", "1f3f4", "1f459", "1f4a0", "1f4a4", "1f4f4", "1f51e", "1f521", "1f530", "1f533", "1f536", "1f549-fe0f",
    "1f54b", "1f54c", "1f6ad", "1f6b3", "1f6be", "1f6d5", "1f7e4", "1f7e8", "1f7ea", "2049-fe0f", "2194-fe0f",
    "2195-fe0f", "23f8-fe0f", "25fb-fe0f", "2620-fe0f", "264c", "26a7-fe0f", "2728", "3297-fe0f",
}  # fmt: skip


class Sources:
    """The packages below DIR."""

    def __init__(self, root: Path) -> None:
        self.skimage = root / "packages" / "skimage" / "skimage" / "data"
        self.stardist = root / "packages" / "stardist" / "stardist" / "data" / "images"
        self.scipy = root / "packages" / "scipy" / "scipy" / "misc"
        found = sorted((root / "cutouts").glob("emoji-*.webp"))
        self.cutouts = [p for p in found if is_held_out(p) and p.stem.removeprefix("emoji-") not in LEFT_OUT]
        for place in (self.skimage, self.stardist, self.scipy):
            if not place.is_dir() or not self.cutouts:
                raise SystemExit(
                    f"{place} or the cut-outs are missing; run scripts/demo_model/fetch_pictures.sh {root}"
                )

    def photo(self, name: str) -> Image.Image:
        """One of BACKGROUNDS as RGB."""
        file = BACKGROUNDS[name]
        if file == "face.dat":
            pixels = np.frombuffer(bz2.decompress((self.scipy / file).read_bytes()), np.uint8)
            return Image.fromarray(pixels.reshape(768, 1024, 3))
        return Image.open(self.skimage / file).convert("RGB")
