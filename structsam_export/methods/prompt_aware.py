"""Prompt-aware StructSAM: cells that touch the prompt stay, everything else merges as far as the rate asks.

StructSAM (arXiv 2603.07307) names the variant in its abstract only; this form is ours. In global blocks the K
flattest cells merge, those that touch the prompt last. Windows cannot share a budget that way, since one window may lie
wholly inside the object: a fixed number of windows, those that hold most of the prompt, stay dense, and in all others
every cell merges. The embedding belongs to its prompt and must not be reused for another one.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, ClassVar

from structsam_export.methods.cells import SIZE, cell_plan, group_by_cell, merged_cells, rank_pads_first
from structsam_export.methods.energy import gradient_energy
from structsam_export.methods.matching import comparison_order, comparison_rank
from structsam_export.methods.plan import MergePlan, SplitPlan
from structsam_export.methods.structsam import StructSAM
from structsam_export.roles import WindowGroup

if TYPE_CHECKING:
    from structsam_export.tokens import Tokens, WindowGrid


@dataclass(frozen=True)
class PromptAwareStructSAM(StructSAM):
    """`rate` is the fraction of all tokens of a layer that is removed, as everywhere."""

    VARIANTS: ClassVar[dict[str, float]] = {"cell": 0.75}
    PROTECTS: ClassVar[str] = "cells that touch the prompt, then those with the steepest gradients"

    def dense_windows(self, grid: WindowGrid) -> int:
        """Windows of one image that stay dense, so that the others, merged wholly, remove the layer's share."""
        if not grid.window or not self._all_cells(grid):
            return 0
        merged = floor(grid.windows * grid.tokens * self.rate / (3 * self._all_cells(grid)) + 1e-9)
        return grid.windows - min(merged, grid.windows)

    def removed(self, grid: WindowGrid) -> int:
        """Tokens removed in one window that merges; 0 if none does."""
        if not grid.window:
            return super().removed(grid)
        return 3 * self._all_cells(grid) if self.dense_windows(grid) < grid.windows else 0

    def window_groups(self, grid: WindowGrid) -> list[WindowGroup]:
        """Dense windows, merged windows."""
        dense, n = self.dense_windows(grid), grid.tokens - self.removed(grid)
        groups = [WindowGroup(dense, grid.tokens, grid.tokens), WindowGroup(grid.windows - dense, n, n)]
        return [group for group in groups if group.windows]

    def plan(self, tokens: Tokens) -> MergePlan | SplitPlan:
        """Plan for all windows of a block; without a prompt no token is protected."""
        import torch

        grid, region = tokens.grid, tokens.region
        energy = gradient_energy(tokens.features, grid, "sobel")
        if region is None:
            region = torch.zeros_like(tokens.features[..., 0])
        touched = grid.partition(region.unsqueeze(-1)).squeeze(-1)
        cells = group_by_cell(energy, grid.window_shape)
        steepest, dst = cells.amax(-1), cells.argmin(-1)
        if not grid.window:
            protected = group_by_cell(touched, grid.window_shape).amax(-1)
            rank = comparison_rank(-protected, -steepest)
            return cell_plan(rank.to(steepest.dtype), dst, grid, merged_cells(grid, self.rate))
        steepest = rank_pads_first(steepest, grid)
        K, dense = self._all_cells(grid), self.dense_windows(grid)
        if not dense:
            return cell_plan(steepest, dst, grid, K)
        # Windows by how much of the prompt they hold, then by structure.
        held, structure = touched.sum(1), energy.mean(1)
        order = comparison_order(held.view(-1, grid.windows), structure.view(-1, grid.windows))
        chosen = order[:, dense:]
        first = torch.arange(chosen.shape[0], device=order.device).unsqueeze(1) * grid.windows
        chosen = (chosen + first).flatten()
        merged = cell_plan(steepest.index_select(0, chosen), dst.index_select(0, chosen), grid, K)
        return SplitPlan(order, dense, merged)

    def _all_cells(self, grid: WindowGrid) -> int:
        """Cells that every window can merge."""
        return merged_cells(grid, 3 / SIZE)
