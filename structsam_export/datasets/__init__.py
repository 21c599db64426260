"""Images with true masks: one file per folder layout, one line here.

    from structsam_export.datasets import open_dataset
    for sample in open_dataset("bundled").samples():
        sample.image(), sample.masks()

A layout is a subclass of `Layout` (`base.py`); it lists samples without decoding anything and knows no model.
"""

from __future__ import annotations

import os
from importlib import import_module
from pathlib import Path

from structsam_export.datasets.base import Dataset, Layout, Sample
from structsam_export.errors import DatasetError, unknown_name

__all__ = ["DATASETS", "Dataset", "Layout", "Sample", "layout_class", "open_dataset"]

DATASETS = {
    "bundled": "structsam_export.datasets.bundled:Bundled",
    "bundled-nuclei": "structsam_export.datasets.bundled:Nuclei",
    "bundled-coins": "structsam_export.datasets.bundled:Coins",
    "bundled-photos": "structsam_export.datasets.bundled:Photos",
    "bundled-composites": "structsam_export.datasets.bundled:Composites",
    "bundled-thin": "structsam_export.datasets.bundled:Thin",
    "generated": "structsam_export.datasets.generated:Generated",
    "dis5k-vd": "structsam_export.datasets.hqsam:DIS5K",
    "coift": "structsam_export.datasets.hqsam:COIFT",
    "hrsod": "structsam_export.datasets.hqsam:HRSOD",
    "thinobject5k-te": "structsam_export.datasets.hqsam:ThinObject5K",
    "coco": "structsam_export.datasets.coco:Coco",
    "folder": "structsam_export.datasets.folder:Folder",
    "labels": "structsam_export.datasets.labels:Labels",
    "medsam-npz": "structsam_export.datasets.medsam:MedSAMNpz",
    "medsam-npy": "structsam_export.datasets.medsam:MedSAMNpy",
}


def layout_class(name: str) -> type[Layout]:
    """The layout behind a name.

    Raises:
        UsageError: unknown name; the message lists the known ones.
    """
    if name not in DATASETS:
        raise unknown_name("dataset", name, [*DATASETS, "or a folder"])
    module, symbol = DATASETS[name].split(":")
    found: type[Layout] = getattr(import_module(module), symbol)
    return found


def open_dataset(name_or_dir: str, root: Path | None = None) -> Dataset:
    """A data set by name, or whatever lies in a folder.

    Args:
        name_or_dir: a key of DATASETS, or a folder (or a COCO annotation file) whose layout is recognised by the names
            of what lies in it. A name wins over a folder of the same name; write `./name` for the folder.
        root: where a named set lies. None: $STRUCTSAM_DATA, or `data`. Not needed for the bundled sets.

    Returns:
        the set; samples are listed and paired, nothing is decoded yet.

    Raises:
        UsageError: neither a known name nor an existing path.
        DatasetError: the data are missing (the message says where to get them and how to lay them out), the layout is
            not recognised or fits twice, or images and masks do not pair up.
    """
    if name_or_dir in DATASETS:
        return layout_class(name_or_dir).open(name_or_dir, None if root is None else Path(root))
    path = Path(name_or_dir)
    if not path.exists():
        if os.sep in name_or_dir or path.is_absolute():
            raise DatasetError(f"There is no folder {path}. Pass an existing folder or one of: {', '.join(DATASETS)}.")
        raise unknown_name("dataset", name_or_dir, [*DATASETS, "or a folder"])
    layouts = [(name, layout_class(name)) for name in DATASETS]
    found = [(name, layout) for name, layout in layouts if layout.recognises(path)]
    if len(found) > 1:
        raise DatasetError(
            f"{path} fits several layouts ({', '.join(name for name, _ in found)}). Open it by name, with this folder "
            "as its root, or keep the files of one layout only."
        )
    if not found:
        trees = "\n\n".join(f"{name}:\n{layout.tree()}" for name, layout in layouts if layout.RECOGNISED)
        raise DatasetError(f"The layout of {path} is not recognised. These are:\n\n{trees}")
    name, layout = found[0]
    return layout.open(path.resolve().stem if path.is_file() else path.resolve().name or name, path)
