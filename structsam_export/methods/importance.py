"""Which 2x2 cells of keys matter most: internally varied and unlike the rest of the grid (SparseSAM, arXiv 2605.17633).

Independent implementation of SparseSAM's group score. Ours: one ranking shared by all heads (the sum of theirs), which
the paper uses for its MLP alone, and ties between sums go to the cell that comes first.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from structsam_export.errors import UsageError
from structsam_export.roles import Role, role_of

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.geometry import EncoderGeometry
    from structsam_export.roles import Step

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


@dataclass(frozen=True)
class CellRanking:
    """What a block does with its keys where cells are ranked: remembers keys and rank for all blocks that follow."""

    def __call__(self, step: Step, keys: Tensor) -> None:
        """Rank cells by keys (B, heads, N, d)."""
        import torch

        with torch.no_grad():
            step.memory["keys"], step.memory["rank"] = keys, cell_rank(keys, step.grid.shape)
            self.follow(step, keys)

    def follow(self, step: Step, keys: Tensor) -> None:
        """What is decided by the rank in the same block: nothing."""


def ranking_role(roles: dict[int, Role], geometry: EncoderGeometry, ranking: Any = CellRanking()) -> Role:
    """The role of the block that ranks cells for all that follow: the first global one on the grid of the last block.

    Raises:
        UsageError: the encoder has no global block from there on.
    """
    every = [role_of(roles, index, geometry) for index in range(geometry.depth)]
    final = every[-1].grid.shape
    start = max((role.index + 1 for role in every if role.grid.shape != final), default=0)
    chosen = next((every[index] for index in geometry.global_layers if index >= start), None)
    if chosen is None:
        raise UsageError("Tokens are ranked by the keys of a global attention block, and this encoder has none.")
    return replace(chosen, rank=ranking)
