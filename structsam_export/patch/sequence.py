"""The patched block where tokens are a sequence: class token and registers lead it and never merge.

They attend with the merged tokens, in one sequence, by the host's own attention, and get their own MLP: methods and MLP
policies see the grid alone.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from structsam_export.patch.block import BlockStep
from structsam_export.patch.state import NAME, PatchedBlock

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.views import SequenceBlock


@dataclass(frozen=True)
class SequenceStep(BlockStep):
    """As `BlockStep`; every call of attention takes the leading tokens along.

    Args:
        lead: normalised leading tokens (B, P, D).
        led: receives what attention made of them.
    """

    lead: Tensor
    led: list[Tensor] = field(default_factory=list)

    def stock(self, x: Tensor) -> Tensor:
        return self.along(x, None)

    def attend(self, x: Tensor, pos: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return self.along(x, pos, sizes), self.keys(x.unsqueeze(1))

    def along(self, x: Tensor, pos: Tensor | None, sizes: Tensor | None = None) -> Tensor:
        """Attention of the grid's tokens x (B, n, D) at places `pos`, behind the leading ones -> (B, n, D)."""
        import torch

        view: Any = self.block
        if sizes is not None:
            sizes = torch.cat([sizes.new_ones(len(sizes), self.lead.shape[1]), sizes], 1)
        y = view.attention.sequence(torch.cat([self.lead, x], 1), self.grid.shape, pos, sizes)
        self.led[:] = [y[:, : self.lead.shape[1]]]
        return y[:, self.lead.shape[1] :]  # type: ignore[no-any-return]


def led_forward(module: Any, x: Tensor, **_: Any) -> Tensor:
    """Block forward by role: x (B, P + H * W, D) -> the same, or (B, P + H' * W', D) where the grid shrinks.

    What hosts hand their blocks beside tokens (tables of rotations) is not read: views have it for any grid.
    """
    import torch

    carried: PatchedBlock = getattr(module, NAME)
    role: Any = carried.role
    view: Any = carried.view
    memory = {} if carried.patch.memory is None else carried.patch.memory
    P, shape = view.prefix, role.grid.shape
    if role.enter is not None:
        entering = BlockStep(carried, role.grid, memory)
        x = on_grid(view, x, carried.entry, lambda grid: role.enter(entering, grid))
    y = view.norm1(x)
    step = SequenceStep(carried, role.grid, memory, y[:, :P])
    if role.attend is None:
        if step.ranks:
            step.rank(step.keys(view.to_grid(y, shape)))
        out, plan = view.attention.sequence(y, shape), None
    else:
        made, plan = role.attend(step, view.to_grid(y, shape))
        out = torch.cat([step.led[0], made.flatten(1, 2)], 1)
    x = x + out
    if role.mlp is None:
        x = x + step.mlp(x)
    else:
        lead = x[:, :P] + step.mlp(x[:, :P])
        x = on_grid(view, x, shape, lambda grid: role.mlp.update(step, grid, plan), lead)
    return x if role.leave is None else on_grid(view, x, shape, lambda grid: role.leave(step, grid))


def on_grid(
    view: SequenceBlock,
    x: Tensor,
    shape: tuple[int, int],
    change: Callable[[Tensor], Tensor],
    lead: Tensor | None = None,
) -> Tensor:
    """A sequence x (B, P + H * W, D) with the grid's tokens changed, and `lead` (B, P, D) for those that lead it."""
    import torch

    made = change(view.to_grid(x, shape)).flatten(1, 2)
    return torch.cat([x[:, : view.prefix] if lead is None else lead, made], 1)
