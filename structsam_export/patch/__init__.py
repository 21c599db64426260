"""Stage 1: token merging in a model's attention blocks; reversible, safe to apply twice, used as a `with` block.

A host is a model family whose blocks can be patched. Hosts know no method: all they use is a plan.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any

from structsam_export.errors import UsageError

if TYPE_CHECKING:
    from torch import nn

    from structsam_export.methods import Method

# Class name of the encoder -> module with `apply(encoder, blocks, mlp)`, `remove(encoder)`, `recording(encoder)` ...
HOSTS = {"ImageEncoderViT": "structsam_export.patch.sam"}


def host_of(encoder: nn.Module) -> Any:
    """The host module of an encoder, found by class name so that no model library is imported.

    Raises:
        UsageError: no host knows this encoder.
    """
    names = [cls.__name__ for cls in type(encoder).__mro__ if cls.__name__ in HOSTS]
    if not names:
        known = ", ".join(HOSTS)
        raise UsageError(f"Cannot patch an encoder of class '{type(encoder).__name__}'. Supported: {known}.")
    return import_module(HOSTS[names[0]])


def blocks_of(method: Method | Mapping[int, Method], layers: Iterable[int] | None) -> dict[int, Method]:
    """One method for `layers`, or a method for each block, as a mapping from block to method."""
    if isinstance(method, Mapping):
        return dict(method)
    return dict.fromkeys(sorted(set(layers or ())), method)


def apply_patch(
    encoder: nn.Module,
    method: Method | Mapping[int, Method],
    layers: Iterable[int] | None = None,
    mlp: Any = None,
) -> nn.Module:
    """Merge tokens in place; an earlier patch is removed first.

    Args:
        encoder: a SAM image encoder.
        method: one method for all of `layers`, or a mapping from block to method.
        layers: blocks to patch, not read with a mapping.
        mlp: MLP policy of `methods.mlp`, or None for dense MLPs.

    Raises:
        UsageError: no host knows the encoder, or the methods cannot work together on it.
    """
    remove_patch(encoder)
    host_of(encoder).apply(encoder, blocks_of(method, layers), mlp)
    return encoder


def remove_patch(encoder: nn.Module) -> nn.Module:
    """Undo `apply_patch`; does nothing on a stock encoder."""
    host_of(encoder).remove(encoder)
    return encoder


@contextmanager
def patched(
    encoder: nn.Module,
    method: Method | Mapping[int, Method],
    layers: Iterable[int] | None = None,
    mlp: Any = None,
) -> Iterator[nn.Module]:
    """`apply_patch` for the length of a `with` block; removed even after an exception."""
    apply_patch(encoder, method, layers, mlp)
    try:
        yield encoder
    finally:
        remove_patch(encoder)


def resolve_layers(spec: str, depth: int, global_layers: Sequence[int]) -> tuple[int, ...]:
    """Blocks meant by `all`, `last5`, `global` or a list such as `0,3,6-8`.

    Raises:
        UsageError: not a preset, not a number, or a block the encoder does not have.
    """
    presets = {"all": range(depth), "last5": range(max(depth - 5, 0), depth), "global": global_layers}
    if spec in presets:
        return tuple(presets[spec])
    chosen: set[int] = set()
    for part in spec.split(","):
        named = re.fullmatch(r"([0-9]+)(?:-([0-9]+))?", part.strip())
        first, last = (int(named[1]), int(named[2] or named[1])) if named else (1, 0)
        if first > last:
            raise UsageError(f"Cannot read layers '{spec}'. Pass all, last5, global or a list such as 0,3,6-8.")
        chosen.update(range(first, last + 1))
    wrong = sorted(i for i in chosen if i >= depth)
    if wrong:
        raise UsageError(f"Unknown layer {wrong[0]}: this encoder has blocks 0 to {depth - 1}.")
    return tuple(sorted(chosen))
