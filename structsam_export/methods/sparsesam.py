"""SparseSAM: every token asks, but only a stripe of the keys answers (arXiv 2605.17633).

Independent implementation; not verified against the authors' results. Keys are visited in stripes: the top-left
tokens of all 2x2 cells, most important cell first, then all top-right, bottom-left and bottom-right ones, as far as
the density goes. Ours: one ranking for all heads, windowed layers stay dense (their attention is 2-3% of the
encoder), and the paper's diagonal blocks are tiles that do not depend on the image (variant "diagonal").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.errors import UsageError
from structsam_export.methods.base import Method
from structsam_export.methods.cells import SIZE, cell_indices
from structsam_export.methods.importance import cell_rank, ranking_role
from structsam_export.methods.plan import groups_of_chosen, rows
from structsam_export.roles import Role, WindowGroup

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from structsam_export.geometry import EncoderGeometry
    from structsam_export.roles import Step
    from structsam_export.tokens import WindowGrid

BLOCK = 64  # keys come in blocks of this size where the grid allows
TILE = 16  # side of a tile: BLOCK tokens of each parity


@dataclass(frozen=True)
class KeyPlan:
    """The keys of one attention layer.

    Args:
        keys: (B, nk) int64, grid indices of the keys that every query attends to, all different.
        tile: 0, or 16: each query also attends to the tokens of its own 16x16 tile whose row and column have the
            parity of its own (64 of them); those that are in `keys` already count once.
        fixed: `keys` are the same for every image, known before any is seen.
    """

    keys: Tensor
    tile: int = 0
    fixed: bool = False

    PARTS: ClassVar[tuple[str, ...]] = ("keys",)
    AT_ONCE: ClassVar[bool] = True

    def pick(self, x: Tensor) -> Tensor:
        """The keys' rows of x (B, N, D) -> (B, nk, D)."""
        # A constant index stays one number per row; expanded to D channels it would be folded into the file.
        return x.index_select(1, self.keys[0]) if self.fixed else rows(x, self.keys)

    def own_groups(self, shape: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
        """Tokens by tile and parity, (G, n): each also attends to its own group; empty without tiles."""
        return tile_order(shape, self.tile) if self.tile else ()

    @staticmethod
    def assignment(parts: Mapping[str, np.ndarray], tokens: int) -> np.ndarray:
        """1 for every token that is a key, (B, tokens) int64."""
        import numpy as np

        kept = np.zeros((len(parts["keys"]), tokens), np.int64)
        np.put_along_axis(kept, parts["keys"], 1, axis=1)
        return kept

    def token_groups(self, grid: WindowGrid) -> np.ndarray:
        """Keys have their own number, other tokens share one in each 2x2 cell: int64 (H, W)."""
        return groups_of_chosen(self.keys[0].numpy(), grid.shape)

    def membership(self, tokens: int) -> Tensor:
        """Which of all tokens are keys of every query, (B, tokens) int64 of 0 and 1: whatever the keys' order."""
        import torch

        nothing = torch.zeros(self.keys.shape[0], tokens, dtype=torch.int64, device=self.keys.device)
        return nothing.scatter(1, self.keys, torch.ones_like(self.keys))


@dataclass(frozen=True)
class SparseSAM(Method):
    """Global attention over a share 1 - rate of the keys; no token is merged, each keeps its own query and output.

    `variant` says what a query visits: "stripe" the keys shared by all, "diagonal" also its own tile's.
    """

    variant: str = "stripe"

    NAME: ClassVar[str] = "sparsesam"
    VARIANTS: ClassVar[dict[str, float]] = {"stripe": 0.75, "diagonal": 0.75}
    PROTECTS: ClassVar[str] = "every token; only keys are left out"
    SOURCE: ClassVar[str] = "SparseSAM, arXiv 2605.17633"

    @property
    def density(self) -> float:
        """Share of the keys that stays."""
        return 1 - self.rate

    def kept_keys(self, grid: WindowGrid) -> int:
        """nk, keys that every query of a layer attends to: whole blocks of 64 where N is a multiple of 64.

        Raises:
            UsageError: global attention over a grid with an odd side, whose last row or column is in no 2x2 cell.
        """
        N = grid.tokens
        if grid.window > 0:
            return N
        if any(side % 2 for side in grid.shape):
            h, w = grid.shape
            raise UsageError(f"SparseSAM needs an even token grid, but this encoder's is {h}x{w}.")
        blocks = floor(N / BLOCK * self.density + 1e-9) if N % BLOCK == 0 else 0
        return BLOCK * blocks if blocks else max(1, floor(N * self.density + 1e-9))

    def removed(self, grid: WindowGrid) -> int:
        """Keys left out for every query (the tiles of "diagonal" bring some back)."""
        return grid.tokens - self.kept_keys(grid)

    def needs_rank(self, grid: WindowGrid) -> bool:
        """Whether the keys depend on the image: not where they are whole quarters of the grid, or all of it."""
        return grid.window == 0 and self.kept_keys(grid) % (grid.tokens // SIZE) != 0

    def plan(self, rank: Tensor | None, grid: WindowGrid, batch: int, device: torch.device | None = None) -> KeyPlan:
        """Choose the keys of a global layer.

        Args:
            rank: (B, C) float32 of `importance.cell_rank`; not read, and may be None, where `needs_rank` is False.
            grid: the block's grid, not windowed.
            batch: B.
            device: where the keys go; the rank's device if there is a rank.

        Returns:
            Plan with whole quarters in raster order first, then those of the last, incomplete one by rank.
        """
        import torch

        whole, more = divmod(self.kept_keys(grid), grid.tokens // SIZE)
        by_corner = tokens_by_corner(grid.shape)
        device = device if rank is None else rank.device
        first = [token for tokens in by_corner[:whole] for token in tokens]
        keys = torch.tensor(first, dtype=torch.int64, device=device).expand(batch, -1)
        if more:
            assert rank is not None, "these keys depend on the image"
            best = torch.topk(rank, more, dim=1, largest=False).indices
            some = torch.tensor(by_corner[whole], device=device)[best]
            keys = torch.cat([keys, some], 1) if whole else some
        return KeyPlan(keys, TILE if self.variant == "diagonal" else 0, fixed=not more)

    def role(self, index: int, geometry: EncoderGeometry, blocks: Mapping[int, Any]) -> Role | None:
        """Global blocks attend to fewer keys.

        Raises:
            UsageError: as `kept_keys`.
        """
        grid = geometry.window_grid(index)
        if self.removed(grid) == 0:
            return None
        decisions = ((f"plan.{index}", KeyPlan),) if self.needs_rank(grid) else ()
        return Role(index, grid, self, attend=self.attend, decisions=decisions)

    def extend(self, roles: dict[int, Role], geometry: EncoderGeometry) -> dict[int, Role]:
        """Where keys depend on the image, one global block ranks the cells for all.

        Raises:
            UsageError: no global block can.
        """
        if not any(role.method == self and self.needs_rank(role.grid) for role in roles.values()):
            return roles
        ranking = ranking_role(roles, geometry)
        return roles | {ranking.index: ranking}

    def attend(self, step: Step, y: Tensor) -> tuple[Tensor, None]:
        """Attention of all tokens y (B, H, W, D) -> (B, H, W, D) to the plan's keys; no merge plan."""
        grid, batch = step.grid, y.shape[0]
        if step.ranks:
            step.rank(step.keys(y))
        if not self.needs_rank(grid):
            return step.attend_to(y, self.plan(None, grid, batch, y.device)), None

        def choose(keys: Tensor) -> KeyPlan:
            return self.plan(cell_rank(keys, grid.shape), grid, keys.shape[0])

        taken = self.plan(step.memory["rank"], grid, batch)
        plan: KeyPlan = step.decide("plan", choose, step.memory["keys"], plan=taken)
        return step.attend_to(y, plan), None

    def token_counts(self, grid: WindowGrid, stock: WindowGrid) -> dict[str, Any]:
        """Tokens stay; `keys` is what a query attends to."""
        N, keys = stock.tokens, self.kept_keys(grid)
        return {"N": N, "n": N, "effective_rate": round(1 - keys / N, 6), "keys": keys}

    def window_groups(self, grid: WindowGrid) -> list[WindowGroup]:
        """Every query of every window visits `paper_keys`, windows too, though ours stay dense."""
        return [WindowGroup(grid.windows, grid.tokens, self.paper_keys(grid))]

    def paper_keys(self, grid: WindowGrid) -> float | int:
        """Keys that one query visits on average as the authors' code counts them.

        Their code adds a diagonal block to the stripe of global layers. In windows it leaves out keys as well, in whole
        blocks, and then visits one block more.
        """
        N = grid.tokens
        if grid.window > 0:
            return min(BLOCK * (floor(ceil(N / BLOCK) * self.density + 1e-9) + 1), N)
        stripe = self.kept_keys(grid)
        return stripe + min(BLOCK, N) * (1 - stripe / N)


@lru_cache(maxsize=64)
def tokens_by_corner(shape: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    """The top-left tokens of all 2x2 cells, then the top-right, bottom-left and bottom-right ones, in raster order."""
    cells, _ = cell_indices(shape)
    return tuple(tuple(cell[corner] for cell in cells) for corner in range(SIZE))


@lru_cache(maxsize=64)
def tile_order(shape: tuple[int, int], largest: int = TILE) -> tuple[tuple[int, ...], ...]:
    """Tokens grouped by tile and parity, (G, n): each token attends to its own group.

    Tiles have the largest side of 16, 8, 4 or 2, at most `largest`, that divides both sides of the grid.
    """
    H, W = shape
    t = next(t for t in (16, 8, 4, 2) if t <= largest and H % t == 0 and W % t == 0)
    return tuple(
        tuple(r * W + c for r in range(top + i, top + t, 2) for c in range(left + j, left + t, 2))
        for top in range(0, H, t)
        for left in range(0, W, t)
        for i in (0, 1)
        for j in (0, 1)
    )
