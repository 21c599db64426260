"""The four evaluation sets of HQ-SAM, in the folders its training and evaluation code reads.

Source: the table of validation sets in `train/train.py` of https://github.com/SysCV/sam-hq. HRSOD's masks are those of
`masks_max255`; ThinObject5K's test half lies in `images_test` and `masks_test`. Of a colour mask the first channel
counts, as in HQ-SAM's loader. One object per image.
"""

from __future__ import annotations

from pathlib import Path
from typing import ClassVar

from structsam_export.datasets.base import Dataset, Layout, data_root
from structsam_export.datasets.pictures import PictureSample, pair_up, pictures

HUB = "https://huggingface.co/sam-hq-team/sam-hq-training/tree/main/data"


class HQSAM(Layout):
    """One of the sets: photos (.jpg) in one folder, masks (.png) of the same stem in another."""

    FOLDER: ClassVar[str]  # below the data folder
    IMAGES: ClassVar[str]
    MASKS: ClassVar[str]
    RECOGNISED = True

    def __init_subclass__(cls) -> None:
        cls.TREE = (
            f"data/                    the folder to pass, or $STRUCTSAM_DATA\n  {cls.FOLDER}/\n"
            f"    {cls.IMAGES}/*.jpg\n    {cls.MASKS}/*.png"
        )
        cls.SOURCE = f"Get it with HQ-SAM's data from {HUB} and unpack it; {cls.SOURCE}"

    @classmethod
    def recognises(cls, folder: Path) -> bool:
        own = cls.FOLDER.endswith(f"/{folder.resolve().name}") and _has(folder, cls.IMAGES, cls.MASKS)
        return own or any(_has(place, cls.IMAGES, cls.MASKS) for place in cls.below(folder))

    @classmethod
    def below(cls, data: Path) -> tuple[Path, Path]:
        """Where the set lies in a data folder: as HQ-SAM's data unpack, or without the first folder."""
        return data / cls.FOLDER, data / Path(cls.FOLDER).name

    @classmethod
    def open(cls, name: str, root: Path | None) -> Dataset:
        data = data_root(root)
        places = [*cls.below(data), data]
        place = next((p for p in places if _has(p, cls.IMAGES, cls.MASKS)), None)
        if place is None:
            raise cls.missing(data, f"No {cls.FOLDER}/{cls.IMAGES} with {cls.MASKS} beside it")
        images = pictures(place / cls.IMAGES, {".jpg"})
        if not images:
            raise cls.missing(place / cls.IMAGES, "No .jpg files")
        pairs = pair_up(images, pictures(place / cls.MASKS, {".png"}), place / cls.IMAGES, place / cls.MASKS)
        return Dataset(
            name,
            [PictureSample(name=i.stem, photo=i, mask_files=(m,), first_channel=True) for i, m in pairs],
        )


def _has(folder: Path, *names: str) -> bool:
    return all((folder / name).is_dir() for name in names)


class DIS5K(HQSAM):
    """DIS-VD: 470 photos of objects with fine structures (Qin et al., ECCV 2022)."""

    TITLE = "DIS5K-VD"
    FOLDER, IMAGES, MASKS = "DIS5K/DIS-VD", "im", "gt"
    SOURCE = "originally https://xuebinqin.github.io/dis/index.html (terms of use there)."


class COIFT(HQSAM):
    """280 photos of birds and insects with thin parts (Mansilla and Miranda)."""

    TITLE = "COIFT"
    FOLDER, IMAGES, MASKS = "thin_object_detection/COIFT", "images", "masks"
    SOURCE = "originally with https://github.com/liewjunhao/thin-object-selection."


class HRSOD(HQSAM):
    """Photos of high resolution with salient objects (Zeng et al., ICCV 2019)."""

    TITLE = "HRSOD"
    FOLDER, IMAGES, MASKS = "thin_object_detection/HRSOD", "images", "masks_max255"
    SOURCE = "originally https://github.com/yi94code/HRSOD."


class ThinObject5K(HQSAM):
    """The 500 test images of ThinObject-5K: thin objects on other photos (Liew et al., WACV 2021)."""

    TITLE = "ThinObject5K-TE"
    FOLDER, IMAGES, MASKS = "thin_object_detection/ThinObject5K", "images_test", "masks_test"
    SOURCE = "originally https://github.com/liewjunhao/thin-object-selection."
