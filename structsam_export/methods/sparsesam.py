"""SparseSAM: every token asks, but only a stripe of the keys answers (arXiv 2605.17633).

Independent implementation; not verified against the authors' results. Keys are visited in stripes: the top-left
tokens of all 2x2 cells, most important cell first, then all top-right, bottom-left and bottom-right ones, as far as
the density goes. Ours: one ranking for all heads, windowed layers stay dense (their attention is 2-3% of the
encoder), and the paper's diagonal blocks are tiles that do not depend on the image (variant "diagonal").
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import ceil, floor
from typing import TYPE_CHECKING, ClassVar

from structsam_export.errors import UsageError
from structsam_export.methods.cells import SIZE, cell_indices
from structsam_export.methods.plan import rows

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from structsam_export.methods.tokens import Layout

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

    parts: ClassVar[tuple[str, ...]] = ("keys",)

    def pick(self, x: Tensor) -> Tensor:
        """The keys' rows of x (B, N, D) -> (B, nk, D)."""
        # A constant index stays one number per row; expanded to D channels it would be folded into the file.
        return x.index_select(1, self.keys[0]) if self.fixed else rows(x, self.keys)

    def membership(self, tokens: int) -> Tensor:
        """Which of all tokens are keys of every query, (B, tokens) int64 of 0 and 1: whatever the keys' order."""
        import torch

        nothing = torch.zeros(self.keys.shape[0], tokens, dtype=torch.int64, device=self.keys.device)
        return nothing.scatter(1, self.keys, torch.ones_like(self.keys))


@dataclass(frozen=True)
class SparseSAM:
    """Global attention over a share 1 - rate of the keys; no token is merged, each keeps its own query and output.

    `variant` says what a query visits: "stripe" the keys shared by all, "diagonal" also its own tile's.
    """

    rate: float = 0.5
    variant: str = "stripe"

    NAME: ClassVar[str] = "sparsesam"
    KIND: ClassVar[str] = "keys"
    VARIANTS: ClassVar[dict[str, float]] = {"stripe": 0.75, "diagonal": 0.75}
    COMPAT: ClassVar[tuple[str, ...]] = ()
    PARAMS: ClassVar[dict[str, tuple[float, float] | tuple[str, ...]]] = {}
    PROTECTS: ClassVar[str] = "every token; only keys are left out"
    SOURCE: ClassVar[str] = "SparseSAM, arXiv 2605.17633"

    @property
    def density(self) -> float:
        """Share of the keys that stays."""
        return 1 - self.rate

    def kept_keys(self, layout: Layout) -> int:
        """nk, keys that every query of a layer attends to: whole blocks of 64 where N is a multiple of 64.

        Raises:
            UsageError: global attention over a grid with an odd side, whose last row or column is in no 2x2 cell.
        """
        N = layout.tokens
        if layout.window > 0:
            return N
        if any(side % 2 for side in layout.grid):
            h, w = layout.grid
            raise UsageError(f"SparseSAM needs an even token grid, but this encoder's is {h}x{w}.")
        blocks = floor(N / BLOCK * self.density + 1e-9) if N % BLOCK == 0 else 0
        return BLOCK * blocks if blocks else max(1, floor(N * self.density + 1e-9))

    def removed(self, layout: Layout) -> int:
        """Keys left out for every query (the tiles of "diagonal" bring some back)."""
        return layout.tokens - self.kept_keys(layout)

    def needs_rank(self, layout: Layout) -> bool:
        """Whether the keys depend on the image: not where they are whole quarters of the grid, or all of it."""
        return layout.window == 0 and self.kept_keys(layout) % (layout.tokens // SIZE) != 0

    def plan(self, rank: Tensor | None, layout: Layout, batch: int, device: torch.device | None = None) -> KeyPlan:
        """Choose the keys of a global layer.

        Args:
            rank: (B, C) float32 of `importance.cell_rank`; not read, and may be None, where `needs_rank` is False.
            layout: the layer's layout, not windowed.
            batch: B.
            device: where the keys go; the rank's device if there is a rank.

        Returns:
            Plan with whole quarters in raster order first, then those of the last, incomplete one by rank.
        """
        import torch

        whole, more = divmod(self.kept_keys(layout), layout.tokens // SIZE)
        quarter = quarters(layout.grid)
        device = device if rank is None else rank.device
        first = [token for tokens in quarter[:whole] for token in tokens]
        keys = torch.tensor(first, dtype=torch.int64, device=device).expand(batch, -1)
        if more:
            assert rank is not None, "these keys depend on the image"
            best = torch.topk(rank, more, dim=1, largest=False).indices
            next_quarter = torch.tensor(quarter[whole], device=device)[best]
            keys = torch.cat([keys, next_quarter], 1) if whole else next_quarter
        return KeyPlan(keys, TILE if self.variant == "diagonal" else 0, fixed=not more)

    def paper_keys(self, layout: Layout) -> float | int:
        """Keys that one query visits on average as the authors' code counts them.

        Theirs adds a diagonal block to the global stripe and thins out windows too, by whole blocks and one more.
        """
        N = layout.tokens
        if layout.window > 0:
            return min(BLOCK * (floor(ceil(N / BLOCK) * self.density + 1e-9) + 1), N)
        stripe = self.kept_keys(layout)
        return stripe + min(BLOCK, N) * (1 - stripe / N)

    def macs(self, layout: Layout, head_dim: int) -> int:
        """MACs of choosing the keys in one block, batch 1: none, the one ranking per image has no product."""
        return 0


@lru_cache(maxsize=64)
def quarters(grid: tuple[int, int]) -> tuple[tuple[int, ...], ...]:
    """The top-left tokens of all 2x2 cells, then the top-right, bottom-left and bottom-right ones, in raster order."""
    cells, _ = cell_indices(grid)
    return tuple(tuple(cell[corner] for cell in cells) for corner in range(SIZE))


@lru_cache(maxsize=64)
def tile_order(grid: tuple[int, int], largest: int = TILE) -> tuple[tuple[int, ...], ...]:
    """Tokens grouped by tile and parity, (G, n): each token attends to its own group.

    Tiles have the largest side of 16, 8, 4 or 2, at most `largest`, that divides both sides of the grid.
    """
    H, W = grid
    t = next(t for t in (16, 8, 4, 2) if t <= largest and H % t == 0 and W % t == 0)
    return tuple(
        tuple(r * W + c for r in range(top + i, top + t, 2) for c in range(left + j, left + t, 2))
        for top in range(0, H, t)
        for left in range(0, W, t)
        for i in (0, 1)
        for j in (0, 1)
    )
