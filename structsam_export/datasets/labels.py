"""Images with label images: 2D medical pairs (INbreast-style), instance masks of microscopy, nnU-Net folders.

`images/` and `labels/`, or nnU-Net's `imagesTr/` and `labelsTr/` (or `...Ts`). A label image has whole numbers: 0 is
background, every other value is one object, 255 too; objects are not split where they are not connected. An image and
its labels have the same stem; nnU-Net's channel ending `_0000` of the image is left out of the comparison.
"""

from __future__ import annotations

from pathlib import Path

from structsam_export.datasets.base import Dataset, Layout, own_folder
from structsam_export.datasets.pictures import PictureSample, pair_up, pictures
from structsam_export.errors import DatasetError

PAIRS = (("images", "labels"), ("imagesTr", "labelsTr"), ("imagesTs", "labelsTs"))
KINDS = {".png", ".tif", ".tiff", ".bmp"}
CHANNEL = "_0000"


class Labels(Layout):
    """`images/` and `labels/`."""

    TITLE = "A folder of images and label images"
    TREE = """
mine/
  images/a.png  b.tif      or imagesTr/a_0000.png, imagesTs/a_0000.png
  labels/a.png  b.tif      or labelsTr/a.png, labelsTs/a.png: 0 background, every other value one object
"""
    SOURCE = (
        "INbreast: https://www.kaggle.com/datasets/ramanathansp20/inbreast-dataset; save DICOM files as 16-bit PNG and "
        "draw the contours into label images first. Other sets that MedSAM was measured on: "
        "https://github.com/bowang-lab/MedSAM."
    )
    RECOGNISED = True

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        return bool(_present(folder))

    @classmethod
    def open(cls, name: str, root: Path | None) -> Dataset:
        root = own_folder(name, root)
        present = _present(root)
        if not present:
            raise cls.missing(root, "No images/ and labels/")
        if len(present) > 1:
            both = ", ".join(f"{images}/ + {labels}/" for images, labels in present)
            raise DatasetError(
                f"{root} has several pairs of folders ({both}). Keep one of them, or link one elsewhere."
            )
        image_folder, label_folder = (root / part for part in present[0])
        images = pictures(image_folder)
        if not images:
            raise cls.missing(image_folder, "No pictures")
        labels = pictures(label_folder, KINDS)
        stems = {path.stem for path in labels}
        bare = {path.with_name(_bare(path.stem, stems) + path.suffix): path for path in images}
        if len(bare) < len(images):
            raise DatasetError(f"{image_folder} has images with and without the ending {CHANNEL}. Keep one of each.")
        pairs = pair_up(list(bare), labels, image_folder, label_folder)
        return Dataset(
            name,
            [PictureSample(name=i.stem, photo=bare[i], mask_files=(m,), labels=True) for i, m in pairs],
        )


def _present(folder: Path) -> list[tuple[str, str]]:
    return [pair for pair in PAIRS if all((folder / part).is_dir() for part in pair)]


def _bare(stem: str, labels: set[str]) -> str:
    """An image's stem without nnU-Net's channel ending, unless the labels carry it too."""
    return stem if stem in labels else stem.removesuffix(CHANNEL)
