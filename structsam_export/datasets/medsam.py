"""MedSAM's two prepared forms: `.npz` files with `imgs` and `gts`, and folders `imgs/` and `gts/` of `.npy` files.

Source: the data descriptions of https://github.com/bowang-lab/MedSAM (npy for training; npz of the CVPR 2024 "MedSAM on
Laptop" challenge). Every label other than 0 is one object. Volumes, (D, H, W), have to be split into slices first.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from structsam_export.datasets.base import Dataset, Layout, Sample, own_folder
from structsam_export.datasets.pictures import objects_of, pair_up, read_bytes
from structsam_export.errors import DatasetError

ACCEPTED = (
    "Expected is `imgs` (H, W) or (H, W, 3), 0..255 (or 0..1 in a .npy file of floats), and `gts` (H, W) of whole "
    "numbers; save each slice of a volume as a file of its own."
)


@dataclass(frozen=True, kw_only=True)
class ArraySample(Sample):
    """An image and its labels in NumPy files; both in one `.npz` where `labels` is None."""

    photo: Path
    labels: Path | None = None

    def image(self) -> np.ndarray:
        values = load_array(self.photo, "imgs")
        if values.ndim == 2:
            values = np.repeat(values[..., None], 3, axis=2)
        if values.ndim != 3 or values.shape[2] != 3 or values.dtype.kind not in "uif":
            raise DatasetError(f"{self.photo} has an image of shape {values.shape}, {values.dtype}. {ACCEPTED}")
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 0.0)
        unit = values.dtype.kind == "f" and high <= 1
        if unit and self.labels is not None:
            values, unit = values * 255, False
        if unit or not (low >= 0 and high <= 255):
            raise DatasetError(f"{self.photo} has image values from {low:g} to {high:g}. {ACCEPTED}")
        return np.round(values).astype(np.uint8)

    def stored(self) -> np.ndarray:
        source = self.labels or self.photo
        labels = load_array(source, "gts")
        if labels.ndim != 2 or labels.dtype.kind not in "uib":
            raise DatasetError(f"{source} has labels of shape {labels.shape}, {labels.dtype}. {ACCEPTED}")
        return objects_of(labels)

    def mask_names(self, count: int) -> list[str]:
        return [str(self.labels or self.photo)] * max(count, 1)

    def stored_bytes(self) -> Iterator[bytes]:
        yield from (read_bytes(path) for path in (self.photo, self.labels) if path is not None)


class MedSAMNpz(Layout):
    """A folder of `.npz` files."""

    TITLE = "A MedSAM npz folder"
    TREE = """
mine/
  *.npz      each with imgs (H, W) or (H, W, 3), 0..255, and gts (H, W), 0 background, every other value one object
"""
    SOURCE = "Get prepared sets, or the scripts that prepare them, from https://github.com/bowang-lab/MedSAM."
    RECOGNISED = True

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return bool(_files(folder, ".npz"))

    @classmethod
    def open(cls, name: str, root: Path | None) -> Dataset:
        root = own_folder(name, root)
        files = _files(root, ".npz")
        if not files:
            raise cls.missing(root, "No .npz files")
        return Dataset(name, [ArraySample(name=path.stem, photo=path) for path in files])


class MedSAMNpy(Layout):
    """Folders `imgs/` and `gts/`."""

    TITLE = "A MedSAM npy folder"
    TREE = """
mine/
  imgs/a.npy   (H, W, 3), floats from 0 to 1 or whole numbers from 0 to 255
  gts/a.npy    (H, W), 0 background, every other value one object
"""
    SOURCE = MedSAMNpz.SOURCE
    RECOGNISED = True

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return (folder / "imgs").is_dir() and (folder / "gts").is_dir()

    @classmethod
    def open(cls, name: str, root: Path | None) -> Dataset:
        root = own_folder(name, root)
        images = _files(root / "imgs", ".npy")
        if not images:
            raise cls.missing(root, "No imgs/*.npy")
        pairs = pair_up(images, _files(root / "gts", ".npy"), root / "imgs", root / "gts")
        return Dataset(name, [ArraySample(name=i.stem, photo=i, labels=m) for i, m in pairs])


def _files(folder: Path, suffix: str) -> list[Path]:
    return sorted(p for p in folder.glob(f"*{suffix}") if not p.name.startswith(".")) if folder.is_dir() else []


def load_array(path: Path, key: str) -> np.ndarray:
    """The array of a `.npy` file, or the one called `key` of a `.npz` file; nothing is unpickled.

    Raises:
        DatasetError: unreadable, not NumPy's format, pickled, or without `key`.
    """
    try:
        loaded = np.load(path, allow_pickle=False)
        if isinstance(loaded, np.ndarray):
            return loaded
        with loaded:
            names, values = loaded.files, loaded[key] if key in loaded.files else None
    except Exception as error:  # its readers raise anything when a file is damaged
        raise DatasetError(f"{path} cannot be read as a NumPy file ({error}). Copy or prepare it again.") from error
    if values is None:
        raise DatasetError(f"{path} has no array '{key}', only {', '.join(names) or 'nothing'}. {ACCEPTED}")
    return np.asarray(values)
