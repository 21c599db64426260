"""The sets inside the package, for a number with true masks and no download.

Made by `scripts/evaluation_set`; `assets/evaluation/CREDITS.md` names sources, licences and how each mask came about.
Report them by `Sample.group`, never pooled: more than a third of all objects are nuclei.
"""

from __future__ import annotations

from dataclasses import replace
from importlib import resources
from pathlib import Path
from typing import ClassVar

from structsam_export.datasets.base import Dataset, Layout, Sample
from structsam_export.datasets.folder import Folder
from structsam_export.datasets.labels import Labels
from structsam_export.errors import UsageError


def bundled_folder() -> Path:
    """Where the package keeps them."""
    return Path(str(resources.files("structsam_export"))) / "assets" / "evaluation"


class Bundled(Layout):
    """All of them, each sample with its set's name as `group`."""

    TITLE = "The bundled evaluation set"
    SOURCE = "It is part of the package: install structsam-export again."

    @classmethod
    def parts(cls) -> tuple[type[BundledPart], ...]:
        """The sets this one consists of."""
        return (Nuclei, Coins, Photos, Composites, Thin)

    @classmethod
    def open(cls, name: str, root: Path | None) -> Dataset:
        if root is not None:
            raise UsageError(f"Dataset '{name}' is part of the package and takes no folder.")
        return Dataset(name, [sample for part in cls.parts() for sample in part.listed()])


class BundledPart(Bundled):
    """One set: the folder of its name, in one of the user's own layouts."""

    NAME: ClassVar[str]
    LAYOUT: ClassVar[type[Layout]]

    @classmethod
    def parts(cls) -> tuple[type[BundledPart], ...]:
        return (cls,)

    @classmethod
    def listed(cls) -> list[Sample]:
        """Its samples, with `group`."""
        folder = bundled_folder() / cls.NAME
        if not folder.is_dir():
            raise cls.missing(folder.parent, f"No {cls.NAME}/")
        group = f"bundled-{cls.NAME}"
        return [replace(sample, group=group) for sample in cls.LAYOUT.open(group, folder).samples()]


class Nuclei(BundledPart):
    """Fluorescence microscopy, 125 nuclei with published masks."""

    NAME, LAYOUT = "nuclei", Labels


class Coins(BundledPart):
    """A photo of 24 coins; masks derived by watershed."""

    NAME, LAYOUT = "coins", Labels


class Photos(BundledPart):
    """Three photos with one object each; masks fitted by hand or by threshold."""

    NAME, LAYOUT = "photos", Labels


class Composites(BundledPart):
    """Held-out cut-outs on photos, exact masks."""

    NAME, LAYOUT = "composites", Folder


class Thin(BundledPart):
    """Wires, lattices, webs and branches on photos, all narrower than a 16 px token, exact masks."""

    NAME, LAYOUT = "thin", Folder
