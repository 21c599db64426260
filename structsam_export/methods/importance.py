"""Which 2x2 cells of keys matter most: internally varied and unlike the rest of the grid (SparseSAM, arXiv 2605.17633).

Independent implementation of SparseSAM's group score. Ours: one ranking shared by all heads (the sum of theirs), which
the paper uses for its MLP alone, and ties between sums go to the cell that comes first.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from structsam_export.errors import UsageError

if TYPE_CHECKING:
    from torch import Tensor

EXACT = 2**24  # whole numbers below are exact in float32


def cell_rank(keys: Tensor, grid: tuple[int, int]) -> Tensor:
    """Rank the 2x2 cells of a grid by their keys, most important first.

    Args:
        keys: (B, heads, N, d) keys of one attention layer, N = H * W in raster order.
        grid: (H, W); an odd last row or column belongs to no cell.

    Returns:
        (B, C) float32, C = (H//2) * (W//2) cells in raster order: whole numbers, all different within an image,
        smaller = more important. Not 0..C-1, but the order is all that TopK needs.

    Raises:
        UsageError: so many cells and heads that float32 could not tell their ranks apart.
    """
    import torch

    B, heads = keys.shape[:2]
    C = (grid[0] // 2) * (grid[1] // 2)
    if heads * (C - 1) * C + C > EXACT:
        raise UsageError(f"Cannot rank {C} cells of {heads} heads exactly: the token grid {grid} is too large.")
    index = torch.arange(C, device=keys.device)
    order = torch.topk(head_scores(keys.float(), grid), C, dim=-1).indices
    place = torch.zeros_like(order).scatter(-1, order, index.expand(B, heads, C))
    return place.to(torch.float32).sum(1) * C + index.to(torch.float32)


def head_scores(keys: Tensor, grid: tuple[int, int]) -> Tensor:
    """z(spread within the cell) + z(-likeness to all other cells), (B, heads, N, d) float32 -> (B, heads, C)."""
    B, heads, _, d = keys.shape
    h, w = grid[0] // 2, grid[1] // 2
    C = h * w
    cells = keys.view(B, heads, *grid, d)[:, :, : 2 * h, : 2 * w].reshape(B * heads, h, 2, w, 2, d)
    mean = cells.mean((2, 4), keepdim=True)
    varied = ((cells - mean).square().sum((2, 4)) / 3).sqrt().mean(-1).view(B, heads, C)
    mean = mean.view(B, heads, C, d)
    unit = mean * mean.square().sum(-1, keepdim=True).clamp(min=1e-24).rsqrt()
    # The mean cosine with all other cells is (C m.c - 1) / (C - 1) for a unit vector m and the mean c of all of them:
    # no C x C matrix. Where keys share a direction all of these are nearly 1; the squared distance to c says the same
    # (|m - c|^2 = 1 + |c|^2 - 2 m.c, and a constant does not change z) and keeps the digits that tell cells apart.
    apart = (unit - unit.mean(2, keepdim=True)).square().sum(-1) * (C / (2 * max(C - 1, 1)))
    return standardised(varied) + standardised(apart)


def standardised(x: Tensor) -> Tensor:
    """Zero mean and unit (unbiased) deviation along the last axis."""
    centred = x - x.mean(-1, keepdim=True)
    deviation = (centred.square().sum(-1, keepdim=True) / max(x.shape[-1] - 1, 1)).sqrt()
    return centred / (deviation + 1e-6)
