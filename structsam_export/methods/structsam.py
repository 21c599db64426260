"""StructSAM: merge the flattest 2x2 cells, keep structure at full resolution (arXiv 2603.07307).

Independent implementation guided by the abstract, the public overview figure and the precursor thesis (GradToMe);
not verified against the authors' code. Our choices where the paper is silent: energy of the head-mean of norm1(x)
over the whole grid with a replicate border, a fixed budget K = floor(rate*N/3) per window, pads merge first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from structsam_export.methods.base import MergeMethod
from structsam_export.methods.cells import (
    cell_plan,
    group_by_cell,
    merged_cells,
    pad_slots,
    rank_pads_first,
    rows_by_cell,
    spread,
)
from structsam_export.methods.energy import gradient_energy
from structsam_export.methods.matching import match

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.methods.plan import MergePlan, SplitPlan
    from structsam_export.tokens import Tokens, WindowGrid


@dataclass(frozen=True)
class StructSAM(MergeMethod):
    """A cell is as flat as its steepest token; the K flattest merge into their lowest-energy token.

    `variant` says which destination a source joins: "cell" its own cell's (no similarity needed), "bsm" the most
    similar destination of the call by cosine (bipartite soft matching). "proportional" is ours: as "cell", but cells
    are ranked by that energy times how far their tokens lie apart, and attention counts a merged cell as four tokens.
    """

    variant: str = "cell"

    NAME: ClassVar[str] = "structsam"
    VARIANTS: ClassVar[dict[str, float]] = {"cell": 0.75, "bsm": 0.75, "proportional": 0.75}
    COMPAT: ClassVar[tuple[str, ...]] = ()
    PROTECTS: ClassVar[str] = "cells with the steepest gradients"
    SOURCE: ClassVar[str] = "StructSAM, arXiv 2603.07307"

    def removed(self, grid: WindowGrid) -> int:
        """Tokens removed in one window: 3 for each merged cell."""
        return 3 * merged_cells(grid, self.rate)

    def plan(self, tokens: Tokens) -> MergePlan | SplitPlan:
        """Plan for all windows of a block; B of the plan = images x windows."""
        grid = tokens.grid
        rank, lowest = self.ranked(tokens)
        rank = rank_pads_first(rank, grid)
        merged = merged_cells(grid, self.rate)
        plan = cell_plan(rank, lowest, grid, merged)
        if self.variant != "bsm":
            return replace(plan, pads=pad_slots(grid, merged), proportional=self.variant == "proportional")
        first = plan.kept - plan.groups
        protected, dst = plan.pos[:, :first], plan.pos[:, first:]
        metric = grid.partition(tokens.features)
        return match(metric, plan.sources, dst, self.removed(grid), grid, protected=protected)

    def ranked(self, tokens: Tokens) -> tuple[Tensor, Tensor]:
        """For all windows of a block what its cells are ranked by, float32 (B, C), least merges first; and which of a
        cell's tokens the others join, int64 (B, C)."""
        energy = gradient_energy(tokens.features, tokens.grid, "sobel")
        shape = tokens.grid.window_shape
        cells = group_by_cell(energy, shape)
        rank = cells.amax(-1)
        if self.variant == "proportional":
            rank = rank * spread(rows_by_cell(tokens.grid.partition(tokens.features.float()), shape)).sqrt()
        return rank, cells.argmin(-1)

    def macs(self, grid: WindowGrid, head_dim: int) -> int:
        """MACs of energy (two 3x3 kernels a channel) and matching in one block, batch 1."""
        energy = 2 * 9 * grid.shape[0] * grid.shape[1] * head_dim
        merged = merged_cells(grid, self.rate)
        return energy + (grid.windows * 3 * merged * merged * head_dim if self.variant == "bsm" else 0)
