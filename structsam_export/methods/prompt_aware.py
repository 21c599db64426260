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

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.methods.tokens import Layout, Tokens

BOX_MARGIN, POINT_RADIUS = 1.0, 2.0  # tokens


def prompt_region(boxes: Tensor, grid: tuple[int, int], patch: int) -> Tensor:
    """Which tokens belong to the prompt.

    Args:
        boxes: (B, 4) float, x0 y0 x1 y1 in input pixels. A box of no width and no height is a point.
        grid: (H, W) tokens.
        patch: side of a token in pixels.

    Returns:
        (B, H, W) float32 of 0 and 1: tokens whose patch meets the box grown by one token, or the square of two
        tokens around a point.
    """
    import torch

    x0, y0, x1, y1 = (boxes.float() / patch).unbind(-1)
    is_point = ((x1 - x0).abs() + (y1 - y0).abs()) == 0
    grow = torch.where(is_point, POINT_RADIUS, BOX_MARGIN)

    def inside(low: Tensor, high: Tensor, size: int) -> Tensor:
        line = torch.arange(size, device=boxes.device, dtype=torch.float32)
        return ((line + 1 > (low - grow).unsqueeze(-1)) & (line < (high + grow).unsqueeze(-1))).float()

    return inside(y0, y1, grid[0]).unsqueeze(-1) * inside(x0, x1, grid[1]).unsqueeze(1)


@dataclass(frozen=True)
class PromptAwareStructSAM(StructSAM):
    """`rate` is the fraction of all tokens of a layer that is removed, as everywhere."""

    VARIANTS: ClassVar[dict[str, float]] = {"cell": 0.75}
    PROTECTS: ClassVar[str] = "cells that touch the prompt, then those with the steepest gradients"

    def dense_calls(self, layout: Layout) -> int:
        """Windows of one image that stay dense, so that the others, merged wholly, remove the layer's share."""
        if not layout.window or not self._all_cells(layout):
            return 0
        merged = floor(layout.calls * layout.tokens * self.rate / (3 * self._all_cells(layout)) + 1e-9)
        return layout.calls - min(merged, layout.calls)

    def removed(self, layout: Layout) -> int:
        """Tokens removed in one attention call that merges; 0 if none does."""
        if not layout.window:
            return super().removed(layout)
        return 3 * self._all_cells(layout) if self.dense_calls(layout) < layout.calls else 0

    def groups(self, layout: Layout) -> list[tuple[int, int]]:
        """(attention calls, tokens n in each) of one image: dense windows, merged windows."""
        dense = self.dense_calls(layout)
        groups = [(dense, layout.tokens), (layout.calls - dense, layout.tokens - self.removed(layout))]
        return [group for group in groups if group[0]]

    def plan(self, tokens: Tokens) -> MergePlan | SplitPlan:  # type: ignore[override]
        """Plan for every attention call of a layer; without a prompt every token counts as free."""
        import torch

        layout, region = tokens.layout, tokens.region
        energy = gradient_energy(tokens.features, layout, "sobel")
        if region is None:
            region = torch.zeros_like(tokens.features[..., 0])
        touched = layout.partition(region.unsqueeze(-1)).squeeze(-1)
        cells = group_by_cell(energy, layout.side)
        steepest, dst = cells.amax(-1), cells.argmin(-1)
        if not layout.window:
            protected = group_by_cell(touched, layout.side).amax(-1)
            rank = comparison_rank(-protected, -steepest)
            return cell_plan(rank.to(steepest.dtype), dst, layout, merged_cells(layout, self.rate))
        steepest = rank_pads_first(steepest, layout)
        K, dense = self._all_cells(layout), self.dense_calls(layout)
        if not dense:
            return cell_plan(steepest, dst, layout, K)
        # Windows by how much of the prompt they hold, then by structure.
        held, structure = touched.sum(1), energy.mean(1)
        order = comparison_order(held.view(-1, layout.calls), structure.view(-1, layout.calls))
        chosen = order[:, dense:]
        first = torch.arange(chosen.shape[0], device=order.device).unsqueeze(1) * layout.calls
        chosen = (chosen + first).flatten()
        merged = cell_plan(steepest.index_select(0, chosen), dst.index_select(0, chosen), layout, K)
        return SplitPlan(order, dense, merged)

    def _all_cells(self, layout: Layout) -> int:
        """Cells that every window can merge."""
        return merged_cells(layout, 3 / SIZE)
