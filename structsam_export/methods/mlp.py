"""Residual-consistency MLP: the MLP runs on important cells only, all other tokens pass on (arXiv 2605.17633).

Independent implementation of SparseSAM's second part. Tokens without an update keep their residual as it is: no copy
from a neighbour, no rescaling. Ours: whole 2x2 cells, and an odd last row or column is always updated.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from structsam_export.errors import UsageError, unknown_name
from structsam_export.methods.cells import SIZE, cell_indices, raster_order
from structsam_export.methods.plan import rows

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class KeepPlan:
    """Which tokens a block's MLP updates.

    Args:
        keep: (B, k) int64, grid indices of the tokens whose MLP runs.
        slot: (B, N) int64, row of each token among the k updates; k for tokens without one.
    """

    keep: Tensor
    slot: Tensor

    parts: ClassVar[tuple[str, ...]] = ("keep", "slot")

    def apply(self, x: Tensor, update: Callable[[Tensor], Tensor]) -> Tensor:
        """Add update(x_kept (B, k, D)) -> (B, k, D) to the kept tokens of x (B, N, D); others stay to the bit."""
        import torch

        updates = update(rows(x, self.keep))
        # A gather with a row of zeros for everyone else: no scatter of values, and x + 0 is x.
        updates = torch.cat([updates, torch.zeros_like(updates[:, :1])], 1)
        return x + rows(updates, self.slot)


@dataclass(frozen=True)
class ResidualConsistency:
    """The MLP runs on a share `density` of the tokens, those of the first-ranked cells.

    In windowed blocks after the first global one, whose keys rank the cells.
    """

    density: float = 0.5

    KIND: ClassVar[str] = "rank"

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise UsageError(f"MLP density {self.density:g} is out of range: it is above 0 and at most 1.")

    def kept(self, grid: tuple[int, int]) -> int:
        """k, tokens whose MLP runs: whole cells next to the density, plus an odd last row or column."""
        return SIZE * self._cells(grid) + len(cell_indices(grid)[1])

    def _cells(self, grid: tuple[int, int]) -> int:
        wanted = round(round(self.density * grid[0] * grid[1]) / SIZE)
        return min(max(wanted, 1), len(cell_indices(grid)[0]))

    def plan(self, rank: Tensor, grid: tuple[int, int]) -> KeepPlan:
        """Keep the cells with the smallest rank.

        Args:
            rank: (B, C) float32 of `importance.cell_rank`.
            grid: (H, W).

        Returns:
            Plan with the kept cells in rank order first, four tokens each, then an odd last row or column.
        """
        import torch

        B, C = rank.shape
        device = rank.device
        cells, rest = cell_indices(grid)
        kept, k = self._cells(grid), self.kept(grid)
        best = torch.topk(rank, kept, dim=1, largest=False).indices
        leftover = torch.tensor(rest, dtype=torch.int64, device=device).expand(B, -1)
        keep = torch.cat([torch.tensor(cells, device=device)[best].flatten(1), leftover], 1)

        # Where each cell stands among the kept ones decides the slot of its four tokens.
        nowhere = torch.full((B, C), kept, dtype=torch.int64, device=device)
        place = nowhere.scatter(1, best, torch.arange(kept, device=device).expand(B, -1)).unsqueeze(-1)
        by_cell = torch.where(place < kept, place * SIZE + torch.arange(SIZE, device=device), k).flatten(1)
        last = (SIZE * kept + torch.arange(len(rest), device=device)).expand(B, -1)
        raster = torch.tensor(raster_order(grid), device=device)
        return KeepPlan(keep, torch.cat([by_cell, last], 1).index_select(1, raster))


@dataclass(frozen=True)
class MergedMLP:
    """The MLP of a merging block runs on its merged tokens, and its update is copied back; the residual stays dense.

    Ours; no paper does this in SAM.
    """

    KIND: ClassVar[str] = "plan"


MLPS = ("none", "residual-consistency", "merge")


def make_mlp(name: str, density: float | None = None) -> ResidualConsistency | MergedMLP | None:
    """The MLP policy of a name; None for dense MLPs.

    Raises:
        UsageError: unknown name, or a density where none belongs or outside (0, 1].
    """
    if name not in MLPS:
        raise unknown_name("MLP choice", name, MLPS)
    if name == "residual-consistency":
        return ResidualConsistency() if density is None else ResidualConsistency(density)
    if density is not None:
        raise UsageError(f"--mlp {name} has no density. Pass --mlp residual-consistency, or leave --mlp-density away.")
    return MergedMLP() if name == "merge" else None
