"""ALGM: merge the 2x2 cells whose tokens are most alike (ALGM, arXiv 2406.09936).

Our adaptation ("ALGM local stage, fixed budget"): the published method merges every cell above a threshold, which
makes token counts depend on the image and on its batch mates; here the best floor(floor(N*rate)/3) cells merge.
Independent implementation; not verified against the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from structsam_export.methods.base import MergeMethod
from structsam_export.methods.cells import (
    SIZE,
    cell_plan,
    merged_cells,
    pad_slots,
    rank_pads_first,
    rows_by_cell,
    spread,
)
from structsam_export.methods.matching import comparison_rank, unit_features

if TYPE_CHECKING:
    from structsam_export.methods.plan import MergePlan
    from structsam_export.tokens import Tokens, WindowGrid


@dataclass(frozen=True)
class ALGM(MergeMethod):
    """A cell's score is the mean cosine of its token pairs; a merged cell sits at its bottom-right token."""

    variant: str = "local"

    NAME: ClassVar[str] = "algm"
    VARIANTS: ClassVar[dict[str, float]] = {"local": 0.75}
    PROTECTS: ClassVar[str] = "cells whose tokens differ most"
    SOURCE: ClassVar[str] = "ALGM, arXiv 2406.09936, local stage at a fixed budget (ours)"

    def removed(self, grid: WindowGrid) -> int:
        """Tokens removed in one window: 3 for each merged cell."""
        return 3 * merged_cells(grid, self.budget(grid) / grid.tokens, pads_first=not self.compat)

    def plan(self, tokens: Tokens) -> MergePlan:
        """Plan for all windows of a block; B of the plan = images x windows."""
        import torch

        grid = tokens.grid
        unit = unit_features(grid.partition(tokens.features.float()))
        of_cell = rows_by_cell(unit, grid.window_shape)
        # The mean of the 12 cosines is 1 - spread / 6: the same order, with more digits where tokens are alike.
        # Published as cosines, where a pad (zero) is unlike itself.
        if self.compat:
            total = of_cell.sum(2).square().sum(-1) - of_cell.square().sum((2, 3))
            # Pads that nobody handles tie with each other, and then go by index.
            rank = comparison_rank(total).to(total.dtype)
        else:
            rank = rank_pads_first(spread(of_cell), grid)
        dst = torch.full(rank.shape, SIZE - 1, dtype=torch.int64, device=unit.device)
        merged = self.removed(grid) // 3
        plan = cell_plan(rank, dst, grid, merged)
        return plan if self.compat else replace(plan, pads=pad_slots(grid, merged))

    def macs(self, grid: WindowGrid, head_dim: int) -> int:
        """No products of tokens: the score is a sum of squares."""
        return 0
