"""Photos without masks: objects are what the unpatched model draws at a grid of points.

They are only where prompts come from (their boxes); loss is then how far a patched model's masks are from those of the
unpatched one at the same prompts, which needs no true masks.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from structsam_export.datasets.base import Sample, with_safe_names
from structsam_export.eager import decoder_of, encoder_call
from structsam_export.errors import BadInputError
from structsam_export.metrics import iou
from structsam_export.models import LoadedModel
from structsam_export.runtime.images import masks_from_logits, prepare
from structsam_export.runtime.pictures import read_image
from structsam_export.runtime.prompts import Prompt, prompt_arrays

ENDINGS = (".jpg", ".jpeg", ".png", ".bmp", ".tif", ".tiff", ".webp")
SIDE, MOST = 4, 4  # points a side, objects a photo
SMALLEST, LARGEST, ALIKE = 0.001, 0.9, 0.7  # share of the photo; masks above this IoU are one object


@dataclass(frozen=True, kw_only=True)
class Drawn(Sample):
    """A photo with the masks that the unpatched model draws on it, bool (K, H, W) packed to bits."""

    path: Path
    shape: tuple[int, ...] = ()
    bits: np.ndarray = field(default_factory=lambda: np.zeros(0, np.uint8), compare=False)

    def image(self) -> np.ndarray:
        """The photo, uint8 RGB (H, W, 3)."""
        return read_image(self.path)

    def stored(self) -> np.ndarray:
        """The masks, 0 and 255."""
        flat = np.unpackbits(self.bits, count=int(np.prod(self.shape)))
        return np.asarray(flat.reshape(self.shape) * np.uint8(255))

    def mask_names(self, count: int) -> Sequence[str]:
        """Messages call the masks by their photo."""
        return [f"{self.path.name}, object {i + 1}" for i in range(count)]

    def stored_bytes(self) -> Iterator[bytes]:
        """The file and what was drawn on it."""
        yield self.path.read_bytes()
        yield hashlib.sha256(self.bits.tobytes()).digest()


def drawn(folder: Path, loaded: LoadedModel, limit: int | None = None) -> list[Sample]:
    """The photos of a folder with objects on them, in the order of their names; photos without any are left out.

    Raises:
        BadInputError: no folder, or no photo with an object.
        ImageError: a photo cannot be read.
    """
    if not folder.is_dir():
        raise BadInputError(f"There is no folder {folder}. Pass --photos FOLDER with pictures in it.")
    paths = sorted(path for path in folder.iterdir() if path.suffix.lower() in ENDINGS)[:limit]
    found = [
        Drawn(name=path.stem, path=path, shape=m.shape, bits=np.packbits(m))
        for path in paths
        if len(m := objects(path, loaded))
    ]
    if not found:
        raise BadInputError(f"{folder} has no picture on which the model draws an object. Pass another --photos.")
    return with_safe_names(found)


def objects(path: Path, loaded: LoadedModel) -> np.ndarray:
    """Masks (K, H, W), K <= MOST, of the unpatched model at a grid of points, the largest first, each object once."""
    size = loaded.geometry.image_size
    image = read_image(path)
    ready = prepare(image, size, loaded.spec.preprocessing)
    h, w = image.shape[:2]
    steps = [(i + 0.5) / SIDE for i in range(SIDE)]
    coords, labels = prompt_arrays([Prompt("", point=(w * x, h * y)) for y in steps for x in steps], ready.scale)
    with encoder_call(loaded, None) as encode:
        logits = decoder_of(loaded)(encode(ready.tensor), coords, labels)
    masks = np.asarray(masks_from_logits(logits, ready, size))
    kept: list[np.ndarray] = []
    for mask in sorted(masks, key=lambda m: -int(m.sum())):
        if SMALLEST <= mask.mean() <= LARGEST and all(iou(mask, other) < ALIKE for other in kept):
            kept.append(mask)
    return np.stack(kept[:MOST]) if kept else np.zeros((0, h, w), bool)
