"""What is written beside the drawn scenes: the sets of real pictures, checksums, a contact sheet."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path

import numpy as np
from evaluation_set.sources import Sources
from PIL import Image

ASSETS = Path(__file__).resolve().parents[2] / "structsam_export" / "assets"
PARTS = ("nuclei", "coins", "photos", "composites", "thin")


def make_real(sources: Sources, folder: Path) -> None:
    """The sets `nuclei`, `coins` and `photos`: copies, the nuclei as 8-bit PNG."""
    for part in ("nuclei", "coins", "photos"):
        for kind in ("images", "labels"):
            (folder / part / kind).mkdir(parents=True)
    for file, kind in (("img2d.tif", "images"), ("mask2d.tif", "labels")):
        pixels = np.asarray(Image.open(sources.stardist / file)).astype(np.uint8)  # both end below 256
        Image.fromarray(pixels).save(folder / "nuclei" / kind / "nuclei.png", optimize=True)
    shutil.copyfile(sources.skimage / "coins.png", folder / "coins" / "images" / "coins.png")
    photos = ASSETS / "photos"
    shutil.copyfile(photos / "coins.mask.png", folder / "coins" / "labels" / "coins.png")
    for name in ("astronaut", "cell", "coffee"):
        shutil.copyfile(photos / f"{name}.jpg", folder / "photos" / "images" / f"{name}.jpg")
        shutil.copyfile(photos / f"{name}.mask.png", folder / "photos" / "labels" / f"{name}.png")


def checksums(folder: Path) -> str:
    """SHA256SUMS, as `sha256sum -c` reads it, of all pictures and of sources.json."""
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.suffix in (".png", ".jpg", ".json"))
    return "".join(f"{hashlib.sha256(p.read_bytes()).hexdigest()}  {p.relative_to(folder).as_posix()}\n" for p in files)


def contact_sheet(folder: Path, path: Path) -> None:
    """A picture of some of the set, objects coloured."""
    from structsam_export.datasets import open_dataset

    sets = {part: open_dataset(str(folder / part)).samples() for part in PARTS}
    real, made = sets["photos"] + sets["coins"] + sets["nuclei"], sets["composites"]
    chosen = real + made[0:40:5] + sets["thin"][:11]
    tile, wide = 200, 8
    sheet = Image.new("RGB", (wide * tile, -(-len(chosen) // wide) * tile), "white")
    colours = np.array([(255, 64, 64), (64, 220, 64), (80, 140, 255), (255, 200, 0), (230, 80, 230)])
    for i, sample in enumerate(chosen):
        pixels = sample.image().astype(np.float32)
        for k, mask in enumerate(sample.masks()):
            pixels[mask] = 0.5 * pixels[mask] + 0.5 * colours[k % len(colours)]
        both = Image.fromarray(pixels.astype(np.uint8))
        both.thumbnail((tile - 4, tile - 4), Image.Resampling.LANCZOS)
        sheet.paste(both, (i % wide * tile + 2, i // wide * tile + 2))
    sheet.save(path, quality=85)
