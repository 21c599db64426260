"""The sources of weights: libraries that store a SAM under names of their own; one file each, one line here."""

from __future__ import annotations

from collections.abc import Iterable
from importlib import import_module

from structsam_export.models.sources.base import Source

# Name -> "module:Class". The first whose anchor is among the tensors counts; "meta" is what others are mapped to.
SOURCES = {
    "efficient_sam": "structsam_export.models.sources.efficient_sam:EfficientSam",
    "meta": "structsam_export.models.sources.meta:Meta",
    "tiny_vit": "structsam_export.models.sources.tiny_vit:TinyViT",
    "huggingface": "structsam_export.models.sources.huggingface:HuggingFace",
}


def source(name: str) -> Source:
    """The source of a name in `SOURCES`."""
    module, symbol = SOURCES[name].split(":")
    found: Source = getattr(import_module(module), symbol)()
    return found


def source_of(names: Iterable[str]) -> Source:
    """The source that tensors of these names come from; Meta's if they tell nothing."""
    every = set(names)
    return source(next((name for name in SOURCES if source(name).ANCHOR in every), "meta"))


def anchors() -> tuple[str, ...]:
    """The names that weights are told by, whatever prefix is put before them."""
    return tuple(source(name).ANCHOR for name in SOURCES)
