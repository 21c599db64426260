"""Residual-consistency MLP: the MLP runs on important cells only, all other tokens pass on (arXiv 2605.17633).

Independent implementation of SparseSAM's second part. Tokens without an update keep their residual as it is: no copy
from a neighbour, no rescaling. Ours: whole 2x2 cells, and an odd last row or column is always updated.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.errors import UsageError, unknown_name
from structsam_export.methods.base import MergeMethod
from structsam_export.methods.cells import SIZE, cell_indices, raster_order
from structsam_export.methods.importance import CellRanking, cell_rank, ranking_role
from structsam_export.methods.plan import groups_of_chosen, rows
from structsam_export.roles import Role, role_of

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from structsam_export.geometry import EncoderGeometry
    from structsam_export.methods.plan import MergePlan, SplitPlan
    from structsam_export.roles import Plan, Step, WindowGroup
    from structsam_export.tokens import WindowGrid


@dataclass(frozen=True)
class KeepPlan:
    """Which tokens a block's MLP updates.

    Args:
        keep: (B, k) int64, grid indices of the tokens whose MLP runs.
        slot: (B, N) int64, row of each token among the k updates; k for tokens without one.
    """

    keep: Tensor
    slot: Tensor

    PARTS: ClassVar[tuple[str, ...]] = ("keep", "slot")
    AT_ONCE: ClassVar[bool] = True

    @staticmethod
    def assignment(parts: Mapping[str, np.ndarray], tokens: int) -> np.ndarray:
        """1 for every token that is updated, (B, N) int64; `tokens` is not read."""
        import numpy as np

        kept: np.ndarray = parts["slot"] < parts["keep"].shape[1]
        return kept.astype(np.int64)

    def token_groups(self, grid: WindowGrid) -> np.ndarray:
        """Updated tokens have their own number, others share one in each 2x2 cell: int64 (H, W)."""
        return groups_of_chosen(self.keep[0].numpy(), grid.shape)

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

    def __post_init__(self) -> None:
        if not 0 < self.density <= 1:
            raise UsageError(f"MLP density {self.density:g} is out of range: it is above 0 and at most 1.")

    def check(self, methods: Iterable[Any]) -> None:
        """Goes with every method."""

    def extend(self, roles: dict[int, Role], geometry: EncoderGeometry) -> dict[int, Role]:
        """One global block ranks and decides, and the windowed blocks behind it follow.

        Raises:
            UsageError: the encoder has no global block.
        """
        ranking = ranking_role(roles, geometry, KeepRanking(self))
        kept: tuple[str, type[Plan]] = (f"mlp.{ranking.index}", KeepPlan)
        made = roles | {ranking.index: replace(ranking, decisions=(*ranking.decisions, kept))}
        for index in range(ranking.index + 1, geometry.depth):
            if geometry.windows[index]:
                made[index] = replace(role_of(roles, index, geometry), mlp=self)
        return made

    def rows(self, grid: WindowGrid, groups: list[WindowGroup]) -> float:
        """Tokens of one image that the MLP runs on."""
        return self.kept(grid.shape)

    def update(self, step: Step, x: Tensor, plan: Any) -> Tensor:
        """x (B, H, W, D) plus its MLP on the tokens that the ranking block decided to keep."""
        keep: KeepPlan = step.memory["keep"]
        return keep.apply(x.flatten(1, 2), step.mlp).view(x.shape)

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

    Ours and experimental: no paper does this in SAM, and it costs masks (`docs/evaluation.md`).
    """

    def check(self, methods: Iterable[Any]) -> None:
        """Refuse methods none of which merges tokens.

        Raises:
            UsageError: none does.
        """
        if not any(isinstance(method, MergeMethod) for method in methods):
            raise UsageError("--mlp merge needs a method that merges tokens around attention. Pass another --mlp.")

    def extend(self, roles: dict[int, Role], geometry: EncoderGeometry) -> dict[int, Role]:
        """Every block that merges tokens runs its MLP on them."""
        merging = {index: replace(r, mlp=self) for index, r in roles.items() if isinstance(r.method, MergeMethod)}
        return roles | merging

    def rows(self, grid: WindowGrid, groups: list[WindowGroup]) -> float:
        """Tokens of one image that the MLP runs on, as the papers count: the slots of all windows."""
        return sum(group.windows * group.queries for group in groups)

    def update(self, step: Step, x: Tensor, plan: MergePlan | SplitPlan) -> Tensor:
        """x (B, H, W, D) plus its MLP on the slots of the block's plan."""
        return x + step.grid.unpartition(plan.through_real(step.grid.partition(x), step.mlp))


@dataclass(frozen=True)
class KeepRanking(CellRanking):
    """Ranks cells, and decides by the rank which tokens the MLPs of later blocks run on."""

    policy: ResidualConsistency

    def follow(self, step: Step, keys: Tensor) -> None:
        """Decide by the rank which tokens are kept."""
        shape, policy = step.grid.shape, self.policy
        taken = policy.plan(step.memory["rank"], shape)
        step.memory["keep"] = step.decide("mlp", lambda k: policy.plan(cell_rank(k, shape), shape), keys, plan=taken)


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
