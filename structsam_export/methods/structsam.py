"""StructSAM: merge the flattest 2x2 cells, keep structure at full resolution (arXiv 2603.07307).

Independent implementation guided by the abstract, the public overview figure and the precursor thesis (GradToMe);
not verified against the authors' code. Our choices where the paper is silent: energy of the head-mean of norm1(x)
over the whole grid with a replicate border, a fixed budget K = floor(rate*N/3) per attention call, pads merge first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from structsam_export.methods.cells import cell_plan, group_by_cell, merged_cells, pad_cells
from structsam_export.methods.energy import sobel_energy
from structsam_export.methods.plan import MergePlan, rows

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.methods.tokens import Layout, Tokens

PAD_CHANNEL = 1.25  # its square exceeds any cosine, so a pad always prefers another pad


@dataclass(frozen=True)
class StructSAM:
    """A cell is as flat as its steepest token; the K flattest merge into their lowest-energy token.

    `variant` says which destination a source joins: "cell" its own cell's (no similarity needed), "bsm" the most
    similar destination of the call by cosine (bipartite soft matching).
    """

    rate: float = 0.5
    variant: str = "cell"

    NAME: ClassVar[str] = "structsam"
    VARIANTS: ClassVar[tuple[str, ...]] = ("cell", "bsm")
    MAX_RATE: ClassVar[float] = 0.75
    PROTECTS: ClassVar[str] = "cells with the steepest gradients"
    SOURCE: ClassVar[str] = "StructSAM, arXiv 2603.07307"

    def removed(self, layout: Layout) -> int:
        """Tokens removed in one attention call: 3 for each merged cell."""
        return 3 * merged_cells(layout.side, self.rate)

    def plan(self, tokens: Tokens) -> MergePlan:
        """Plan for every attention call of a layer; B of the plan = images x windows."""
        import torch

        layout = tokens.layout
        energy = layout.partition(sobel_energy(tokens.features).unsqueeze(-1)).squeeze(-1)
        cells = group_by_cell(energy, layout.side)
        steepest = cells.amax(-1)
        if layout.has_pads:
            # Pads are flatter than anything, each by its own amount: no ties, whatever a runtime's sort does.
            pads = torch.tensor(pad_cells(layout), device=energy.device)
            pads = pads.repeat(steepest.shape[0] // pads.shape[0], 1)
            below = -1.0 - torch.arange(steepest.shape[1], device=energy.device, dtype=energy.dtype)
            steepest = torch.where(pads, below, steepest)
        plan = cell_plan(steepest, cells.argmin(-1), layout, merged_cells(layout.side, self.rate))
        return plan if self.variant == "cell" else self._match(plan, tokens)

    def _match(self, plan: MergePlan, tokens: Tokens) -> MergePlan:
        """Send every source to the most similar destination of its call instead of its own cell's."""
        import torch

        unit = unit_features(tokens)
        dst = rows(unit, plan.pos[:, plan.kept - plan.groups :])
        best = (rows(unit, plan.sources) @ dst.transpose(1, 2)).argmax(-1)
        slot = plan.slot.scatter(1, plan.sources, best + (plan.kept - plan.groups))
        return MergePlan(plan.pos, torch.as_tensor(slot), plan.sources, plan.groups)

    def macs(self, layout: Layout, head_dim: int) -> int:
        """MACs of energy (two 3x3 kernels a channel) and matching in one block, batch 1."""
        energy = 2 * 9 * layout.grid[0] * layout.grid[1] * head_dim
        merged = merged_cells(layout.side, self.rate)
        return energy + (layout.calls * 3 * merged * merged * head_dim if self.variant == "bsm" else 0)


def unit_features(tokens: Tokens) -> Tensor:
    """Unit-length features per call (B, N, d), with one more channel that makes pads match pads only."""
    import torch

    layout = tokens.layout
    x = layout.partition(tokens.features.float())
    unit = x * torch.rsqrt(x.square().sum(-1, keepdim=True).clamp(min=1e-24))
    if not layout.has_pads:
        return unit
    pads = torch.tensor(layout.pads(), device=x.device)
    channel = (pads.to(unit.dtype) * PAD_CHANNEL).unsqueeze(-1)
    return torch.cat([unit, channel.repeat(unit.shape[0] // pads.shape[0], 1, 1)], -1)
