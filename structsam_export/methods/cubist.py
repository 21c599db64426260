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
from functools import lru_cache
from math import floor
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.errors import UsageError
from structsam_export.methods.base import Method
from structsam_export.methods.matching import APART, unit_features
from structsam_export.methods.plan import rows
from structsam_export.roles import Role
from structsam_export.tokens import WindowGrid

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from structsam_export.geometry import EncoderGeometry
    from structsam_export.roles import Step

LEFT, RIGHT = 1, 2  # what an odd token does; 0 stays
FROM_RIGHT, FROM_LEFT = 1, 2  # whose value an even token's channel has; 0 its own


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
            step.memory["grid"] = step.decide("grid", lambda t: self.method.reduce(t, self.grid)[1], x, plan=plan)
        return small


def restore(step: Step, x: Tensor) -> Tensor:
    """What the last block does on leaving: copy tokens x (B, H', W', D) back to the grid there was (B, H, W, D)."""
    plan: GridPlan = step.memory["grid"]
    return plan.unmerge(x)


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


def line_joins(x: Tensor, removed: int, edges: tuple[tuple[float, ...], ...] | None) -> Tensor:
    """What each odd token of a line does: the `removed` that are most like a neighbour join that one.

    Args:
        x: (R, N, C) lines.
        removed: r <= N // 2; which of exactly tied tokens join is the runtime's choice.
        edges: scores that replace those of pads, as `pad_edges` gives them for the lines of one image.

    Returns:
        (R, N // 2) int64 of 0, LEFT and RIGHT.
    """
    import torch
    import torch.nn.functional as F

    R, N, _ = x.shape
    if removed == 0:
        return torch.zeros(R, N // 2, dtype=torch.int64, device=x.device)
    # Minus the squared distance of unit vectors is 2 cos - 2: the same order, with all digits where cosines are near 1.
    unit = unit_features(x.float())
    score = -(unit[:, 1:] - unit[:, :-1]).square().sum(-1)
    if edges is not None:
        instead = torch.tensor(edges, device=score.device, dtype=score.dtype).repeat(R // len(edges), 1)
        score = torch.where(instead == 0, score, instead)
    # A last odd token has no right neighbour.
    left, right = F.pad(score, (0, 1 - N % 2), value=-2 * APART).view(R, N // 2, 2).unbind(-1)
    side = torch.where(right > left, RIGHT, LEFT)
    if removed == N // 2:
        return side
    best = torch.topk(torch.maximum(left, right), removed, dim=1).indices
    return torch.zeros_like(side).scatter(1, best, side.gather(1, best))


def merge_lines(x: Tensor, joins: Tensor, removed: int) -> tuple[Tensor, Tensor]:
    """Shorten lines (R, N, C) -> (R, N - r, C): even tokens take over the largest values that join them.

    Second, whose values they are, as in `GridPlan.row_values`; one zero if no token goes.
    """
    import torch
    import torch.nn.functional as F

    if removed == 0:
        return x, torch.zeros(1, 1, 1, dtype=torch.int64, device=x.device)
    N = x.shape[1]
    even, odd, join = x[:, ::2], x[:, 1::2], joins.unsqueeze(-1)
    # An even token may get company from both sides. Where the line ends with one, evens outnumber odds.
    from_right = F.pad(torch.where(join == LEFT, odd, 0), (0, 0, 0, N % 2))
    from_left = F.pad(torch.where(join == RIGHT, odd, 0), (0, 0, 1, 0))[:, : even.shape[1]]
    own, right, left = even.abs(), from_right.abs(), from_left.abs()
    # A zero never wins.
    values = torch.where(left > torch.maximum(own, right), FROM_LEFT, torch.where(right > own, FROM_RIGHT, 0))
    even = torch.where(values == FROM_RIGHT, from_right, torch.where(values == FROM_LEFT, from_left, even))
    # Those that stay, in their order: all keys differ.
    place = torch.arange(N, device=x.device, dtype=torch.float32)
    key = torch.cat([-place[::2].expand(len(x), -1), -place[1::2] - 2 * N * (joins > 0).float()], 1)
    return rows(torch.cat([even, odd], 1), torch.topk(key, N - removed, dim=1).indices), values


def line_slots(joins: Tensor, length: int) -> Tensor:
    """Where each token of a line went: (R, N // 2) -> (R, N) int64 places in the shortened line."""
    import torch

    join = torch.stack([torch.zeros_like(joins), joins], -1).flatten(1)
    join = torch.cat([join, join.new_zeros(len(join), 1)], 1) if length % 2 else join
    # A token that goes leaves the count at its left neighbour's place.
    return (join == 0).long().cumsum(1) - 1 + (join == RIGHT).long()


@lru_cache(maxsize=64)
def pad_edges(
    grid: WindowGrid, removed: tuple[int, int]
) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]] | tuple[None, None]:
    """Scores of edges with pads in all lines of one image, as constants, 0 for edges without; None without pads.

    Returns:
        (windows * h, w - 1) for rows, and (windows * (w - r_w), h - 1) for the columns of the row-reduced grid.
        Pads stay together at the end there: how many real tokens a row loses depends on shapes only.
    """
    if not grid.has_pads:
        return None, None
    (h, w), (nh, nw), (H, W) = grid.window_shape, grid.window_counts, grid.shape
    real = [(min(h, H - i * h), min(w, W - j * w)) for i in range(nh) for j in range(nw)]
    across = tuple(edges_of_line(right if r < bottom else 0, w) for bottom, right in real for r in range(h))
    down = tuple(
        edges_of_line(bottom if c < real_left(right, w, removed[1]) else 0, h)
        for bottom, right in real
        for c in range(w - removed[1])
    )
    return across, down


def edges_of_line(real: int, length: int) -> tuple[float, ...]:
    """Scores of a line's edges that replace those of pads, where pads follow `real` tokens.

    Two pads merge before anything else, each pair with its own score: no ties, whatever a runtime's sort does. A pad
    and a real token merge after all real ones; the value is then the real one's, for a pad is zero.
    """
    return tuple(2 - k / length if k >= real else -APART if k == real - 1 else 0.0 for k in range(length - 1))


def real_left(real: int, length: int, removed: int) -> int:
    """Real tokens that stay in a line of `real` tokens and then pads."""
    single = real == length - 1 and real % 2 == 1  # an odd pad at the end, next to real tokens only
    pads = length // 2 - real // 2 - single
    return real - min(max(removed - pads, 0), real // 2)
