"""The families of models that `--model auto` tells apart by their weights; one file each, one line here.

A family says which weights are its own, reads their architecture, and builds its modules.
"""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module
from typing import TYPE_CHECKING

from structsam_export.errors import unknown_name

if TYPE_CHECKING:
    from structsam_export.models.families.base import Family

SAM = "sam"
# Name -> "module:Class". The first that knows the weights counts; "sam" knows all.
FAMILIES = {
    "efficient-sam": "structsam_export.models.families.efficient_sam:EfficientSam",
    "sam-hq": "structsam_export.models.families.sam_hq:SamHQ",
    SAM: "structsam_export.models.families.sam:SamFamily",
}


def family(name: str) -> Family:
    """The family of a name.

    Raises:
        UsageError: unknown name; the message lists the known ones.
    """
    if name not in FAMILIES:
        raise unknown_name("family", name, FAMILIES)
    module, symbol = FAMILIES[name].split(":")
    found: Family = getattr(import_module(module), symbol)()
    return found


def family_of(names: Iterable[str]) -> Family:
    """The family that tensors of these names are of; SAM's if they tell nothing."""
    every = frozenset(names)
    return family(next(name for name in FAMILIES if family(name).knows(every)))
