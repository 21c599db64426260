"""Small images with true masks, with the interface of `structsam_export.datasets`, and a reader of such folders."""

from __future__ import annotations

import hashlib
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

import numpy as np
from PIL import Image

from structsam_export.errors import BadInputError


@dataclass(frozen=True)
class FakeSample:
    """An image file with one 8-bit mask file for each object."""

    name: str
    image_path: Path
    mask_paths: tuple[Path, ...]
    group: str = ""

    def image(self):
        return read(self.image_path, "RGB")

    def alpha(self):
        return np.stack([read(path, "L") for path in self.mask_paths])

    def masks(self):
        return self.alpha() > 128

    def digest(self):
        parts = [path.read_bytes() for path in (self.image_path, *self.mask_paths)]
        return hashlib.sha256(b"|".join(parts)).hexdigest()


def read(path, mode):
    try:
        return np.asarray(Image.open(path).convert(mode))
    except (OSError, SyntaxError) as error:
        raise BadInputError(f"Cannot read {path}: {error}.") from None


@dataclass(frozen=True)
class FakeDataset:
    name: str
    listed: tuple[FakeSample, ...]

    def __len__(self):
        return len(self.listed)

    def samples(self):
        return list(self.listed)


def open_folder(name, root=None):
    """`images/x.png` with `masks/x.png` or `masks/x-0.png`, `masks/x-1.png`, ..."""
    folder = Path(name)
    found = []
    for image in sorted((folder / "images").glob("*.png")):
        masks = tuple(sorted((folder / "masks").glob(f"{image.stem}*.png")))
        found.append(FakeSample(image.stem, image, masks))
    return FakeDataset(folder.name, tuple(found))


def use_folders(monkeypatch):
    """Data sets are folders, whatever package reads them otherwise."""
    module = ModuleType("structsam_export.datasets")
    module.open_dataset = open_folder
    monkeypatch.setitem(sys.modules, "structsam_export.datasets", module)


def scene(seed=0, size=(72, 96), objects=1):
    """An image (h, w, 3) of bright discs on a dim ground, and soft masks (objects, h, w), both uint8."""
    rng = np.random.default_rng(seed)
    h, w = size
    y, x = np.mgrid[:h, :w]
    image = rng.integers(20, 60, (h, w, 3)).astype(np.float64)
    masks = []
    for i in range(objects):
        cy, cx, r = h * rng.uniform(0.35, 0.65), w * (i + 0.5) / objects + rng.uniform(-4, 4), 0.2 * h
        alpha = np.clip(r - np.hypot(y - cy, x - cx) + 0.5, 0, 1)[..., None]
        image = image * (1 - alpha) + rng.integers(140, 250, 3) * alpha
        masks.append((alpha[..., 0] * 255).astype(np.uint8))
    return image.astype(np.uint8), np.stack(masks)


def write_folder(folder, count=3, objects=(1, 2, 1, 1)):
    """A folder of scenes; returns it."""
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True)
    for i in range(count):
        image, masks = scene(i, objects=objects[i])
        Image.fromarray(image).save(folder / "images" / f"s{i}.png")
        for k, mask in enumerate(masks):
            Image.fromarray(mask).save(folder / "masks" / f"s{i}-{k}.png")
    return folder
