"""A patched encoder's state: roles and views of its blocks, and the forward pass in progress."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.roles import Decision, Role
    from structsam_export.views import BlockView

NAME = "_structsam"  # attribute of patched modules


@dataclass
class Patch:
    """One patched encoder.

    Args:
        roles: what each changed block does, by its number.
        region: (B, H, W) tokens of the prompt, while `patch.prompted` lasts.
        decisions: receives decisions by name, while `patch.recording` lasts.
        memory: what blocks leave for later ones in the forward pass in progress; None between passes.
    """

    roles: dict[int, Role]
    region: Tensor | None = None
    decisions: dict[str, Decision] | None = None
    memory: dict[str, Any] | None = None


@dataclass(frozen=True)
class PatchedBlock:
    """What a patched block module carries; `entry` is the grid (H, W) that it is given."""

    role: Role
    view: BlockView
    patch: Patch
    entry: tuple[int, int]
