"""2x2 cells of tokens: which tokens they hold, and the plan that merges the K first-ranked of them."""

from __future__ import annotations

from functools import lru_cache
from math import floor
from typing import TYPE_CHECKING

from structsam_export.methods.plan import MergePlan

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.tokens import WindowGrid

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


def merged_cells(grid: WindowGrid, rate: float, *, pads_first: bool = True) -> int:
    """K = floor(rate * N / 3), at most the cells a window can merge without mixing pads and real tokens."""
    allowed = min(sum(rank <= 0 or not pads_first for rank in window) for window in pad_ranks(grid))
    return min(allowed, floor(grid.tokens * rate / (SIZE - 1) + 1e-9))


def group_by_cell(values: Tensor, side: tuple[int, int]) -> Tensor:
    """Token values (B, N) -> (B, C, 4), cell by cell."""
    import torch

    cells, _ = cell_indices(side)
    index = torch.tensor(cells, device=values.device).flatten()
    return values.index_select(1, index).view(values.shape[0], len(cells), SIZE)


def rows_by_cell(values: Tensor, side: tuple[int, int]) -> Tensor:
    """Rows of tokens (B, N, d) -> (B, C, 4, d), cell by cell."""
    import torch

    cells, _ = cell_indices(side)
    index = torch.tensor(cells, device=values.device).flatten()
    return values.index_select(1, index).view(values.shape[0], len(cells), SIZE, -1)


def spread(of_cell: Tensor) -> Tensor:
    """Squared distances of each cell's tokens (B, C, 4, d) to their mean, added up: (B, C)."""
    return (of_cell - of_cell.mean(2, keepdim=True)).square().sum((2, 3))


@lru_cache(maxsize=64)
def raster_order(side: tuple[int, int]) -> tuple[int, ...]:
    """Where each token of the grid stands when tokens are listed cell by cell, odd row and column last."""
    cells, rest = cell_indices(side)
    listed = [t for cell in cells for t in cell] + list(rest)
    where = {token: place for place, token in enumerate(listed)}
    return tuple(where[t] for t in range(len(listed)))


@lru_cache(maxsize=64)
def pad_ranks(grid: WindowGrid) -> tuple[tuple[float, ...], ...]:
    """What to rank cells with pads by instead of their energy, as constants (windows, C); 0 means no pads.

    Cells of pads only are flatter than any energy, each by its own amount: no ties, whatever a runtime's sort does.
    Cells that mix pads and real tokens (grids that leave an odd row in the last window) come last and never merge.
    """
    cells, _ = cell_indices(grid.window_shape)

    def rank(number: int, pads: int) -> float:
        return 0.0 if pads == 0 else -1.0 - number if pads == SIZE else 1e9

    return tuple(tuple(rank(i, sum(window[t] for t in cell)) for i, cell in enumerate(cells)) for window in grid.pads())


@lru_cache(maxsize=64)
def pad_slots(grid: WindowGrid, merged: int) -> tuple[tuple[int, ...], ...]:
    """Slots of `cell_plan` that hold nothing but pads if cells were ranked with pads first, for each window."""
    cells, rest = cell_indices(grid.window_shape)
    kept = (len(cells) - merged) * SIZE + len(rest)

    def slots(pads: int) -> tuple[int, ...]:
        merging = range(kept, kept + min(pads, merged))
        protected = range(SIZE * max(pads - merged, 0))
        return (*protected, *merging)

    return tuple(slots(sum(all(cell) for cell in by_cell)) for by_cell in pads_of_cells(grid))


def rank_pads_first(rank_by: Tensor, grid: WindowGrid) -> Tensor:
    """Scores of cells (B, C), smallest merges first, with those of cells that hold pads replaced by `pad_ranks`."""
    import torch

    if not grid.has_pads:
        return rank_by
    instead = torch.tensor(pad_ranks(grid), device=rank_by.device, dtype=rank_by.dtype)
    instead = instead.repeat(rank_by.shape[0] // instead.shape[0], 1)
    return torch.where(instead == 0, rank_by, instead)


@lru_cache(maxsize=64)
def pads_of_cells(grid: WindowGrid) -> tuple[tuple[tuple[bool, ...], ...], ...]:
    """Which of the four tokens of each cell are pads, as constants (windows, C, 4)."""
    cells, _ = cell_indices(grid.window_shape)
    return tuple(tuple(tuple(window[t] for t in cell) for cell in cells) for window in grid.pads())


@lru_cache(maxsize=64)
def mergeable_sources(grid: WindowGrid) -> int:
    """Sources that every window can merge if each cell has one destination: a real token unless all four are pads."""
    cells, _ = cell_indices(grid.window_shape)
    least = grid.tokens - len(cells)
    for pads, by_cell in zip(grid.pads(), pads_of_cells(grid)):
        pad_dst = sum(all(cell) for cell in by_cell)
        pad_src = sum(pads) - pad_dst
        real_src = grid.tokens - len(cells) - pad_src
        least = min(least, (real_src if pad_dst < len(cells) else 0) + (pad_src if pad_dst else 0))
    return least


def partition_by_cell(energy: Tensor, grid: WindowGrid, plain: bool) -> tuple[Tensor, Tensor]:
    """The token of lowest energy (B, N) of each cell is its destination, all other tokens are sources.

    Args:
        energy: float32, one value a token.
        grid: how the block cuts its tokens into windows.
        plain: pads are ordinary tokens; otherwise a cell with real tokens has a real destination.

    Returns:
        Sources (B, N - C), cell by cell and then an odd last row or column, and destinations (B, C).
    """
    import torch

    B, device = energy.shape[0], energy.device
    cells, rest = cell_indices(grid.window_shape)
    by_cell = group_by_cell(energy, grid.window_shape)
    if grid.has_pads and not plain:
        pads = torch.tensor(pads_of_cells(grid), device=device, dtype=energy.dtype)
        pads = pads.repeat(B // pads.shape[0], 1, 1)
        # A different amount for each, so that no runtime has a tie to break.
        by_cell = torch.where(pads > 0, 1e9 * (1 + torch.arange(SIZE, device=device)), by_cell)
    lowest = by_cell.argmin(-1)
    table = torch.tensor(cells, device=device).flatten()
    first = torch.arange(len(cells), device=device) * SIZE
    dst = table[first + lowest]
    src = table[first[:, None] + torch.tensor(OTHERS, device=device)[lowest]].flatten(1)
    leftover = torch.tensor(rest, dtype=torch.int64, device=device).expand(B, -1)
    return torch.cat([src, leftover], 1), dst


def cell_plan(rank_by: Tensor, dst: Tensor, grid: WindowGrid, merged: int) -> MergePlan:
    """Merge the `merged` cells with the smallest `rank_by` into one token each.

    Args:
        rank_by: (B, C) score of every cell; which of two exactly tied cells goes first is the runtime's choice.
        dst: (B, C) int64, which of a cell's four tokens (0..3, raster order) is the destination.
        grid: how the block cuts its tokens into windows; B is a multiple of its windows.
        merged: K, cells to merge; n = N - 3K.

    Returns:
        Plan with kept tokens first (protected cells in rank order, then an odd last row or column), then the
        K destinations.
    """
    import torch

    B, C = rank_by.shape
    cells, rest = cell_indices(grid.window_shape)
    device, kept = rank_by.device, (C - merged) * SIZE + len(rest)
    table = torch.tensor(cells, device=device)
    first = torch.arange(C, device=device) * SIZE
    order = torch.topk(rank_by, C, dim=1, largest=False).indices
    flattest, protected = order[:, :merged], order[:, merged:]

    # A merging cell and its destination as one number: everything about it is looked up.
    choice = (first + dst).gather(1, flattest)
    dst_token = table.flatten()
    src_token = table[torch.arange(C, device=device)[:, None, None], torch.tensor(OTHERS, device=device)].flatten(0, 1)
    members = torch.zeros(grid.tokens, SIZE, dtype=torch.int64, device=device)
    members[dst_token] = torch.cat([dst_token.unsqueeze(1), src_token], 1)
    leftover = torch.tensor(rest, dtype=torch.int64, device=device).expand(B, -1)
    pos = torch.cat([table[protected].flatten(1), leftover, dst_token[choice]], 1)
    sources = src_token[choice].flatten(1)

    # Where each cell stands in the order decides the slot of its four tokens.
    place = torch.zeros_like(order).scatter(1, order, torch.arange(C, device=device).expand(B, C))
    single = torch.arange(-merged * SIZE, (C - merged) * SIZE, device=device).view(C, SIZE)
    shared = torch.arange(kept, kept + C, device=device).unsqueeze(1).expand(-1, SIZE)
    by_place = torch.where(torch.arange(C, device=device).unsqueeze(1) < merged, shared, single)
    odd = torch.arange(kept - len(rest), kept, device=device).expand(B, -1)
    raster = torch.tensor(raster_order(grid.window_shape), device=device)
    slot = torch.cat([by_place[place].flatten(1), odd], 1).index_select(1, raster)
    return MergePlan(pos, slot, sources, merged, equal=True, group_members=members)
