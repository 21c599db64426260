"""The patched encoder: its class opens a forward pass on entry and closes it on exit, whatever happens in between."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from structsam_export.hosts import host_of
from structsam_export.patch.block import patched_class
from structsam_export.patch.sequence import led_forward
from structsam_export.patch.state import NAME, Patch, PatchedBlock

if TYPE_CHECKING:
    from torch import nn

    from structsam_export.roles import Role


def apply(encoder: Any, roles: Mapping[int, Role]) -> None:
    """Change the classes of an encoder and of the blocks that have a role; without roles nothing changes."""
    if not roles:
        return
    host, patch = host_of(encoder), Patch(dict(roles))
    views, grid = host.blocks(encoder), host.geometry(encoder).grid
    for index, role in roles.items():
        module: Any = views[index].module
        entry = role.grid.shape if role.enter is None else grid
        setattr(module, NAME, PatchedBlock(role, views[index], patch, entry))
        # Blocks that show what leads their sequence have tokens that are on no grid.
        follow = led_forward if hasattr(views[index], "prefix") else None
        module.__class__ = patched_class(type(module), follow)
    setattr(encoder, NAME, patch)
    encoder.__class__ = encoder_class(type(encoder))


def remove(encoder: Any) -> None:
    """Give an encoder and its blocks their own classes back; nothing happens to a stock encoder."""
    views = host_of(encoder).blocks(encoder)
    if patch_of(encoder) is None:
        return
    for module in (encoder, *(view.module for view in views)):
        if hasattr(module, NAME):
            module.__class__ = type(module).__bases__[0]
            delattr(module, NAME)


def patch_of(encoder: nn.Module) -> Patch | None:
    """The patch of an encoder, None on a stock one."""
    return getattr(encoder, NAME, None)


def encoder_class(stock: Any) -> type:
    """A subclass of the stock encoder whose forward leaves nothing of an image behind, not even after an exception."""

    def forward(encoder: Any, *args: Any, **kwargs: Any) -> Any:
        patch: Patch = getattr(encoder, NAME)
        patch.memory = {}
        try:
            return stock.forward(encoder, *args, **kwargs)
        finally:
            patch.memory = None

    return type(f"Patched{stock.__name__}", (stock,), {"forward": forward})
