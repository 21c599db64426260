"""StructSAM: merge the flattest 2x2 cells, keep structure at full resolution (arXiv 2603.07307).

Independent implementation guided by the abstract, the public overview figure and the precursor thesis (GradToMe);
not verified against the authors' code. Our choices where the paper is silent: energy of the head-mean of norm1(x)
over the whole grid with a replicate border, a fixed budget K = floor(rate*N/3) per attention call, pads merge first.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from structsam_export.methods.cells import cell_plan, group_by_cell, merged_cells, pad_ranks
from structsam_export.methods.energy import sobel_energy
from structsam_export.methods.plan import MergePlan, rows

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.methods.tokens import Layout, Tokens


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
        return 3 * merged_cells(layout, self.rate)

    def plan(self, tokens: Tokens) -> MergePlan:
        """Plan for every attention call of a layer; B of the plan = images x windows."""
        import torch

        layout = tokens.layout
        energy = layout.partition(sobel_energy(tokens.features).unsqueeze(-1)).squeeze(-1)
        cells = group_by_cell(energy, layout.side)
        steepest = cells.amax(-1)
        if layout.has_pads:
            instead = torch.tensor(pad_ranks(layout), device=energy.device, dtype=energy.dtype)
            instead = instead.repeat(steepest.shape[0] // instead.shape[0], 1)
            steepest = torch.where(instead == 0, steepest, instead)
        plan = cell_plan(steepest, cells.argmin(-1), layout, merged_cells(layout, self.rate))
        return plan if self.variant == "cell" else self._match(plan, tokens)

    def _match(self, plan: MergePlan, tokens: Tokens) -> MergePlan:
        """Send every real source to the most similar real destination of its call; pads stay in their own cells."""
        import torch

        layout, first = tokens.layout, plan.kept - plan.groups
        unit = unit_features(layout.partition(tokens.features.float()))
        dst = plan.pos[:, first:]
        similar = cosine_order(rows(unit, plan.sources), rows(unit, dst), unit.mean(1, keepdim=True))
        if not layout.has_pads:
            best = similar.argmax(-1)
        else:
            pads = torch.tensor(layout.pads(), device=unit.device).to(unit.dtype)
            pads = pads.repeat(unit.shape[0] // pads.shape[0], 1)
            # A pad is orthogonal to everything; without this it would win where all other cosines are negative.
            best = (similar - 100 * pads.gather(1, dst).unsqueeze(1)).argmax(-1)
            own = plan.slot.gather(1, plan.sources) - first
            best = torch.where(pads.gather(1, plan.sources) > 0, own, best)
        slot = plan.slot.scatter(1, plan.sources, best + first)
        return MergePlan(plan.pos, slot, plan.sources, plan.groups)

    def macs(self, layout: Layout, head_dim: int) -> int:
        """MACs of energy (two 3x3 kernels a channel) and matching in one block, batch 1."""
        energy = 2 * 9 * layout.grid[0] * layout.grid[1] * head_dim
        merged = merged_cells(layout, self.rate)
        return energy + (layout.calls * 3 * merged * merged * head_dim if self.variant == "bsm" else 0)


def unit_features(x: Tensor) -> Tensor:
    """Rows of unit length; zero rows stay zero."""
    import torch

    return x * torch.rsqrt(x.square().sum(-1, keepdim=True).clamp(min=1e-24))


def cosine_order(a: Tensor, b: Tensor, centre: Tensor) -> Tensor:
    """Scores that order unit rows b (B, K, d) for each unit row a (B, A, d) exactly as their cosine does.

    2 a.b - |b|^2 about a common centre (B, 1, d) is minus the squared distance plus a constant of a. In flat regions
    all cosines are 1 - 1e-5 and FP32 keeps two digits of what tells them apart, so runtimes would disagree; distances
    to a near centre keep all of them.
    """
    a, b = a - centre, b - centre
    return 2 * (a @ b.transpose(1, 2)) - b.square().sum(-1).unsqueeze(1)
