"""Stage 1: methods in an encoder's blocks; reversible, safe to apply twice, used as a `with` block.

Everything here works on the views of a host (`hosts`) and on roles (`roles.py`): it knows no model and no method.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from structsam_export.errors import UsageError, shortened
from structsam_export.hosts import check_method, host_of
from structsam_export.roles import RESTORE, assign, blocks_of

if TYPE_CHECKING:
    from torch import Tensor, nn

    from structsam_export.roles import Decision, Method, MLPPolicy, Plan, Role


def apply_patch(
    encoder: nn.Module,
    method: Method | Mapping[int, Method],
    layers: Iterable[int] | None = None,
    mlp: MLPPolicy | None = None,
) -> nn.Module:
    """Patch an encoder in place; an earlier patch is removed first.

    Args:
        encoder: an image encoder of a known host.
        method: one method for all of `layers`, or a mapping from block to method.
        layers: blocks to patch, not read with a mapping.
        mlp: MLP policy of `methods.mlp`, or None for dense MLPs.

    Raises:
        UsageError: no host knows the encoder, or the methods cannot work together on it.
    """
    remove_patch(encoder)
    geometry, blocks = host_of(encoder).geometry(encoder), blocks_of(method, layers)
    for name in dict.fromkeys(one.NAME for one in blocks.values()):
        check_method(encoder, name)
    return apply_roles(encoder, assign(geometry, blocks, mlp))


def apply_roles(encoder: nn.Module, roles: Mapping[int, Role]) -> nn.Module:
    """Patch an encoder in place with roles that are assigned already (`Schedule.roles`); see `apply_patch`."""
    from structsam_export.patch.encoder import apply

    remove_patch(encoder)
    apply(encoder, roles)
    return encoder


def remove_patch(encoder: nn.Module) -> nn.Module:
    """Undo `apply_patch`; does nothing on a stock encoder."""
    from structsam_export.patch.encoder import remove

    remove(encoder)
    return encoder


@contextmanager
def patched(
    encoder: nn.Module,
    method: Method | Mapping[int, Method],
    layers: Iterable[int] | None = None,
    mlp: MLPPolicy | None = None,
) -> Iterator[nn.Module]:
    """`apply_patch` for the length of a `with` block; removed even after an exception."""
    apply_patch(encoder, method, layers, mlp)
    try:
        yield encoder
    finally:
        remove_patch(encoder)


def roles_of(encoder: nn.Module) -> dict[int, Role]:
    """Roles of the patched blocks, by number; empty on a stock encoder."""
    from structsam_export.patch.encoder import patch_of

    patch = patch_of(encoder)
    return {} if patch is None else dict(sorted(patch.roles.items()))


def decisions_of(encoder: nn.Module) -> dict[str, type[Plan]]:
    """Kind of plan of every decision a forward pass takes, by name ("plan.3", "grid.2", "mlp.2"), in order."""
    return {name: plan for role in roles_of(encoder).values() for name, plan in role.decisions}


def reduced_blocks(encoder: nn.Module) -> tuple[int, ...]:
    """Blocks whose attention computes less than the stock one."""
    return tuple(index for index, role in roles_of(encoder).items() if role.reduced)


@contextmanager
def recording(encoder: nn.Module) -> Iterator[dict[str, Decision]]:
    """Collect the decisions of forward passes in the `with` block, by name."""
    from structsam_export.patch.encoder import patch_of

    decisions: dict[str, Decision] = {}
    patch = patch_of(encoder)
    if patch is not None:
        patch.decisions = decisions
    try:
        yield decisions
    finally:
        if patch is not None:
            patch.decisions = None


@contextmanager
def prompted(encoder: nn.Module, boxes: Tensor | None) -> Iterator[None]:
    """Forward passes in the `with` block know the prompt: boxes (B, 4), x0 y0 x1 y1 in input pixels, or None."""
    from structsam_export.patch.encoder import patch_of
    from structsam_export.tokens import prompt_region

    patch, region = patch_of(encoder), None
    if boxes is not None:
        geometry = host_of(encoder).geometry(encoder)
        region = prompt_region(boxes, geometry.grid, geometry.patch_size)
    if patch is not None:
        patch.region = region
    try:
        yield
    finally:
        if patch is not None:
            patch.region = None


def whole_grid(encoder: nn.Module, x: Tensor) -> Tensor:
    """Tokens (B, H', W', D) of a block, on the grid of the image (B, H, W, D); called before the forward pass ends.

    For encoders that hand out tokens of a block in the middle, where a method may have made the grid smaller.
    """
    from structsam_export.patch.encoder import patch_of

    patch = patch_of(encoder)
    if patch is None or not patch.memory or tuple(x.shape[1:3]) == host_of(encoder).geometry(encoder).grid:
        return x
    return patch.memory[RESTORE](x)  # type: ignore[no-any-return]


@contextmanager
def observed(encoder: nn.Module) -> Iterator[dict[int, Tensor]]:
    """Collect what merge methods would see in the blocks of a stock encoder: features (B, H, W, d), by block."""
    from structsam_export.patch.block import head_mean

    features: dict[int, Tensor] = {}
    host = host_of(encoder)
    shape = host.geometry(encoder).grid

    def watch(index: int, view: Any) -> Any:
        return lambda module, inputs, y: features.update({index: head_mean(view.attention, view.to_grid(y, shape))})

    hooks = [view.norm1.register_forward_hook(watch(i, view)) for i, view in enumerate(host.blocks(encoder))]
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()


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
        if named is None:
            raise _unreadable(spec)
        first, last = (_number(digits) for digits in (named[1], named[2] or named[1]))
        if first > last:
            raise _unreadable(spec)
        if last >= depth:
            raise UsageError(f"Unknown layer {max(first, depth)}: this encoder has blocks 0 to {depth - 1}.")
        chosen.update(range(first, last + 1))
    return tuple(sorted(chosen))


def _number(digits: str) -> int:
    """A number that may have more digits than Python reads; from a billion on, all are alike."""
    digits = digits.lstrip("0") or "0"
    return int(digits) if len(digits) < 10 else 10**9


def _unreadable(spec: str) -> UsageError:
    return UsageError(f"Cannot read layers '{shortened(spec)}'. Pass all, last5, global or a list such as 0,3,6-8.")
