"""2x2 cells of tokens: which tokens they hold, and the plan that merges the K first-ranked of them."""

from __future__ import annotations

from functools import lru_cache
from math import floor
from typing import TYPE_CHECKING

from structsam_export.methods.plan import MergePlan, rows

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.methods.tokens import Layout

SIZE = 4  # tokens of a cell
# The other three tokens of a cell, by which one is the destination.
OTHERS = ((1, 2, 3), (0, 2, 3), (0, 1, 3), (0, 1, 2))


@lru_cache(maxsize=64)
def cell_indices(side: tuple[int, int]) -> tuple[tuple[tuple[int, ...], ...], tuple[int, ...]]:
    """Token indices of every 2x2 cell of a (h, w) grid, and the tokens of an odd last row or column."""
    h, w = side
    cells = tuple(
        tuple((r + dr) * w + c + dc for dr in (0, 1) for dc in (0, 1))
        for r in range(0, h - 1, 2)
        for c in range(0, w - 1, 2)
    )
    inside = {t for cell in cells for t in cell}
    return cells, tuple(t for t in range(h * w) if t not in inside)


def merged_cells(layout: Layout, rate: float) -> int:
    """K = floor(rate * N / 3), at most the cells a call can merge without mixing pads and real tokens."""
    pure = min(sum(rank <= 0 for rank in window) for window in pad_ranks(layout))
    return min(pure, floor(layout.tokens * rate / (SIZE - 1) + 1e-9))


def group_by_cell(values: Tensor, side: tuple[int, int]) -> Tensor:
    """Token values (B, N) -> (B, C, 4), cell by cell."""
    import torch

    cells, _ = cell_indices(side)
    index = torch.tensor(cells, device=values.device).flatten()
    return values.index_select(1, index).view(values.shape[0], len(cells), SIZE)


@lru_cache(maxsize=64)
def raster_order(side: tuple[int, int]) -> tuple[int, ...]:
    """Where each token of the grid stands when tokens are listed cell by cell, odd row and column last."""
    cells, rest = cell_indices(side)
    listed = [t for cell in cells for t in cell] + list(rest)
    where = {token: place for place, token in enumerate(listed)}
    return tuple(where[t] for t in range(len(listed)))


@lru_cache(maxsize=64)
def pad_ranks(layout: Layout) -> tuple[tuple[float, ...], ...]:
    """What to rank cells with pads by instead of their energy, as constants (windows, C); 0 means no pads.

    Cells of pads only are flatter than any energy, each by its own amount: no ties, whatever a runtime's sort does.
    Cells that mix pads and real tokens (grids that leave an odd row in the last window) come last and never merge.
    """
    cells, _ = cell_indices(layout.side)

    def rank(number: int, pads: int) -> float:
        return 0.0 if pads == 0 else -1.0 - number if pads == SIZE else 1e9

    return tuple(
        tuple(rank(i, sum(window[t] for t in cell)) for i, cell in enumerate(cells)) for window in layout.pads()
    )


def cell_plan(rank_by: Tensor, dst: Tensor, layout: Layout, merged: int) -> MergePlan:
    """Merge the `merged` cells with the smallest `rank_by` into one token each.

    Args:
        rank_by: (B, C) score of every cell; which of two exactly tied cells goes first is the runtime's choice.
        dst: (B, C) int64, which of a cell's four tokens (0..3, raster order) is the destination.
        layout: the layer's layout; B is a multiple of its windows.
        merged: K, cells to merge; n = N - 3K.

    Returns:
        Plan with kept tokens first (protected cells in rank order, then an odd last row or column), then the
        K destinations.
    """
    import torch

    B, C = rank_by.shape
    cells, rest = cell_indices(layout.side)
    device = rank_by.device
    table = torch.tensor(cells, device=device).flatten()
    first = torch.arange(C, device=device) * SIZE
    order = torch.topk(rank_by, C, dim=1, largest=False).indices
    flattest, protected = order[:, :merged], order[:, merged:]

    dst_token = table[first + dst]
    src_token = table[first[:, None] + torch.tensor(OTHERS, device=device)[dst]]
    kept = table.view(C, SIZE)[protected].flatten(1)
    leftover = torch.tensor(rest, dtype=torch.int64, device=device).expand(B, -1)
    pos = torch.cat([kept, leftover, rows(dst_token.unsqueeze(-1), flattest).squeeze(-1)], 1)
    sources = rows(src_token, flattest).flatten(1)

    # Where each cell stands in the order decides the slot of its four tokens.
    place = torch.zeros_like(order).scatter(1, order, torch.arange(C, device=device).expand(B, C)).unsqueeze(-1)
    alone = (place - merged) * SIZE + torch.arange(SIZE, device=device)
    together = place + (pos.shape[1] - merged)
    by_cell = torch.where(place < merged, together, alone).flatten(1)
    by_cell = torch.cat([by_cell, (C - merged) * SIZE + torch.arange(len(rest), device=device).expand(B, -1)], 1)
    raster = torch.tensor(raster_order(layout.side), device=device)
    return MergePlan(pos, by_cell.index_select(1, raster), sources, merged, equal=True)
