"""CubistMerge: shrink the whole grid once, and run all blocks that follow on the smaller one (arXiv 2509.21764).

Independent implementation; not verified against the authors' code. Every row of tokens loses the same number of
tokens, then every column of what is left does, so the grid stays a grid. In a row, each odd token may join its left
or right neighbour, whichever is more alike; of a group, each channel keeps the value of largest magnitude.

Ours, because their SAM code is not public: one reduction inside each attention window (14 -> 14 - r) and the block
where it happens. The released code loses a source when two share a target; this is the true maximum of all three.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import floor
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.errors import UsageError
from structsam_export.methods.base import Method
from structsam_export.methods.lines import line_joins, line_slots, merge_lines, pad_edges
from structsam_export.methods.plan import rows
from structsam_export.roles import RESTORE, Role
from structsam_export.tokens import WindowGrid

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from structsam_export.geometry import EncoderGeometry
    from structsam_export.roles import Step


@dataclass(frozen=True)
class GridPlan:
    """The decisions of one reduction, as integers only.

    Args:
        rows: (B * windows * h, w // 2) int64, what each odd token of a row does: 0 stays, 1 joins its left
            neighbour, 2 its right one.
        columns: (B * windows * (w - r_w), h // 2) int64, the same for the columns of the row-reduced grid.
        row_values: (B * windows * h, (w + 1) // 2, C) int64, whose value each channel of each even token has: 0 its
            own, 1 that of the one that joins from the right, 2 from the left. Which magnitude is larger is a decision,
            too: where signs differ, rounding would move the value by twice itself.
        column_values: the same for columns, (B * windows * (w - r_w), (h + 1) // 2, C).
        grid: what was reduced at once: windows (h, w), or the whole grid.
        removed: (r_h, r_w), tokens that every column and every row loses.
    """

    rows: Tensor
    columns: Tensor
    row_values: Tensor
    column_values: Tensor
    grid: WindowGrid
    removed: tuple[int, int]

    PARTS: ClassVar[tuple[str, ...]] = ("rows", "columns", "row_values", "column_values")
    AT_ONCE: ClassVar[bool] = False  # columns are decided on what is left of the rows

    @property
    def after(self) -> WindowGrid:
        """The small grid; its windows fill it without pads."""
        return smaller(self.grid, self.removed)

    def slot(self) -> Tensor:
        """Where each original token (B, H * W) went, int64 indices of the small grid in raster order."""
        import torch

        (h, w), (nh, nw), (r_h, r_w) = self.grid.window_shape, self.grid.window_counts, self.removed
        across = line_slots(self.rows, w).view(-1, h, w)
        down = line_slots(self.columns, h).view(-1, w - r_w, h).transpose(1, 2).gather(2, across)
        width = self.after.shape[1]
        corner = [i * (h - r_h) * width + j * (w - r_w) for i in range(nh) for j in range(nw)]
        corners = torch.tensor(corner, device=across.device).view(-1, 1, 1)
        place = (down * width + across).view(-1, nh * nw, h, w) + corners
        return self.grid.unpartition(place.view(-1, h * w, 1)).flatten(1)

    def unmerge(self, y: Tensor) -> Tensor:
        """Copy the small grid (B, H', W', C) back to every token it stands for (B, H, W, C)."""
        return rows(y.flatten(1, 2), self.slot()).unflatten(1, self.grid.shape)

    @staticmethod
    def assignment(parts: Mapping[str, np.ndarray], tokens: int) -> np.ndarray:
        """All joins and all values in one line, (1, any) int64; `tokens` is not read."""
        import numpy as np

        return np.concatenate([parts[part].ravel() for part in GridPlan.PARTS])[None]

    def token_groups(self, grid: WindowGrid) -> np.ndarray:
        """Where each token went on the small grid, int64 (H, W)."""
        import numpy as np

        return np.asarray(self.slot()[0].view(grid.shape))


@dataclass(frozen=True)
class Shrink:
    """What the first block under `method` does on entry: shrink the grid, which the windowed blocks cut as `grid`."""

    method: Cubist
    grid: WindowGrid

    def __call__(self, step: Step, x: Tensor) -> Tensor:
        """Tokens x (B, H, W, D) -> (B, H', W', D)."""
        import torch

        with torch.no_grad():
            small, plan = self.method.reduce(x, self.grid)
            plan = step.decide("grid", lambda t: self.method.reduce(t, self.grid)[1], x, plan=plan)
        step.memory[RESTORE] = plan.unmerge
        return small


def restore(step: Step, x: Tensor) -> Tensor:
    """What the last block does on leaving: copy tokens x (B, H', W', D) back to the grid there was (B, H, W, D)."""
    whole: Tensor = step.memory[RESTORE](x)
    return whole


@dataclass(frozen=True)
class Cubist(Method):
    """The grid with the removed fraction of tokens nearest to `rate`.

    `variant` says where lines are removed: "window" inside every attention window, so that windows stay windows;
    "global" from the whole grid, whose windows then hold other tokens than before.
    """

    variant: str = "window"

    NAME: ClassVar[str] = "cubist"
    # Half of each side: .75, but in windows pads are among what goes (SAM: 64 -> 35, .70).
    VARIANTS: ClassVar[dict[str, float]] = {"window": 0.7, "global": 0.75}
    PROTECTS: ClassVar[str] = "tokens unlike both neighbours; the largest value of each channel"
    SOURCE: ClassVar[str] = "CubistMerge, arXiv 2509.21764"

    def scope(self, grid: WindowGrid) -> WindowGrid:
        """What is reduced at once: the encoder's windows, or the whole grid (also where it has no windows)."""
        return grid if self.variant == "window" else WindowGrid(grid.shape)

    def lines(self, grid: WindowGrid) -> tuple[int, int]:
        """(r_h, r_w), the tokens each column and each row loses; (0, 0) if no smaller grid is nearer to the rate.

        Args:
            grid: how the encoder's windowed blocks cut the grid, whatever block the reduction comes before.
        """
        scope = self.scope(grid)
        (h, w), (H, W) = scope.window_shape, grid.shape
        longer = max(h, w)
        kept = {(0, 0): H * W}
        for r in range(1, longer // 2 + 1):
            # The same fraction of both sides.
            r_h, r_w = (min(floor(r * side / longer + 0.5), side // 2) for side in (h, w))
            height, width = smaller(scope, (r_h, r_w)).shape
            kept[r_h, r_w] = height * width
        # A grid that its pads make no smaller (SAM: 14 -> 13, 64 -> 65) is never nearer than the one there was.
        return min(kept, key=lambda removed: abs(kept[removed] - (1 - self.rate) * H * W))

    def after(self, grid: WindowGrid) -> WindowGrid:
        """How windowed blocks behind the reduction cut the small grid, from how they cut the `grid` there was."""
        small = smaller(self.scope(grid), self.lines(grid))
        return small if self.scope(grid).window else WindowGrid(small.shape, grid.window)

    def reduce(self, x: Tensor, grid: WindowGrid) -> tuple[Tensor, GridPlan]:
        """Shrink the residual stream x (B, H, W, C) -> (B, H', W', C); its values depend on the plan's integers only.

        Args:
            x: tokens on the grid.
            grid: how the encoder's windowed blocks cut the grid.
        """
        scope, removed = self.scope(grid), self.lines(grid)
        (h, w), (r_h, r_w), C = scope.window_shape, removed, x.shape[-1]
        edges_across, edges_down = pad_edges(scope, removed)
        line = scope.partition(x).reshape(-1, w, C)
        across = line_joins(line, r_w, edges_across)
        line, widest = merge_lines(line, across, r_w)
        line = line.view(-1, h, w - r_w, C).transpose(1, 2).reshape(-1, h, C)
        down = line_joins(line, r_h, edges_down)
        line, highest = merge_lines(line, down, r_h)
        line = line.view(-1, w - r_w, h - r_h, C).transpose(1, 2)
        plan = GridPlan(across, down, widest, highest, scope, removed)
        return plan.after.unpartition(line.flatten(1, 2)), plan

    def first_layer(self, depth: int) -> int:
        """A grid that shrinks stays small to the end: the first quarter of the blocks sees what there is."""
        return depth // 4

    def role(self, index: int, geometry: EncoderGeometry, blocks: Mapping[int, Any]) -> Role | None:
        """The first block shrinks the grid, all that follow run on the small one, and the last one restores it.

        Raises:
            UsageError: the blocks are not the last ones of the encoder, or other methods are among them.
        """
        last, before = geometry.depth - 1, geometry.windowed_grid
        first = min(i for i, method in blocks.items() if isinstance(method, Cubist))
        if sorted(blocks) != list(range(first, geometry.depth)) or set(blocks.values()) != {self}:
            raise UsageError(
                f"'{self.NAME}' reduces the grid once, for all blocks that follow. Pass --layers {first}-{last} "
                "(one rate) or leave --layers away."
            )
        after = self.after(before)
        if after.shape == before.shape:
            return None
        role = Role(index, WindowGrid(after.shape, after.window if geometry.windows[index] else 0), self)
        if index == first:
            role = replace(role, enter=Shrink(self, before), decisions=((f"grid.{index}", GridPlan),))
        return replace(role, leave=restore) if index == last else role

    def token_counts(self, grid: WindowGrid, stock: WindowGrid) -> dict[str, Any]:
        """`grid` is the small one (H', W'), `n` the tokens of one of its windows."""
        rate = round(1 - grid.real_tokens / stock.real_tokens, 6)
        return {"N": stock.tokens, "n": grid.tokens, "effective_rate": rate, "grid": list(grid.shape)}


def smaller(grid: WindowGrid, removed: tuple[int, int]) -> WindowGrid:
    """The grid whose windows have (r_h, r_w) rows and columns less."""
    (h, w), (nh, nw), (r_h, r_w) = grid.window_shape, grid.window_counts, removed
    if removed == (0, 0):
        return grid  # pads become part of a small grid, but not of the one there was
    return WindowGrid((nh * (h - r_h), nw * (w - r_w)), h - r_h if grid.window else 0)
