"""Views of an encoder's blocks: all that patching and methods know of a model.

A host makes them of its own modules. D channels, `heads` heads of d = D / heads channels; tokens of one image lie on a
grid (H, W) that windowed blocks cut into windows (h, w).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from torch import Tensor, nn


class AttentionView(Protocol):
    """A block's attention: weights and positions, whatever the host calls them; D channels in `heads` heads of d."""

    @property
    def heads(self) -> int: ...
    @property
    def dim(self) -> int:
        """D, channels of queries, of keys and of values, all heads together."""
        ...

    @property
    def scale(self) -> float:
        """What scores q.k are multiplied by before the softmax."""
        ...

    @property
    def has_positions(self) -> bool:
        """Whether relative positions are added to the scores."""
        ...

    def linear(self, parts: str) -> tuple[Tensor, Tensor | None]:
        """Weight (len(parts) * D, D) and bias of the projections named by letters: "q", "k", "v" or "kv"."""
        ...

    def positions(self, axis: int, size: int) -> Tensor:
        """Relative positions along one axis (0 rows, 1 columns): (size, size, d), first the query's line, then the
        key's; q . positions is added to the score. Only where `has_positions`.
        """
        ...

    def output(self, y: Tensor) -> Tensor:
        """The projection after attention, (B, n, D) or (B, H, W, D)."""
        ...

    def stock(self, x: Tensor) -> Tensor:
        """The module's own attention over windows (B, h, w, D), each on its own."""
        ...


class BlockView(Protocol):
    """One transformer block: x + attention(norm1(x)), then x + mlp(norm2(x))."""

    @property
    def module(self) -> nn.Module: ...
    @property
    def norm1(self) -> nn.Module: ...
    @property
    def attention(self) -> AttentionView: ...
    @property
    def norm2(self) -> nn.Module: ...
    @property
    def mlp(self) -> nn.Module: ...
    @property
    def window(self) -> int:
        """Side of the block's attention windows in tokens, 0 if it attends over the whole grid."""
        ...

    def to_grid(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        """What the block is called with -> tokens (B, H, W, D) on a grid of `shape`."""
        ...

    def from_grid(self, x: Tensor) -> Tensor:
        """Tokens on the grid (B, H, W, D) -> what the block returns."""
        ...


class SequenceAttention(AttentionView, Protocol):
    """Attention that knows no grid and can be run as it is on any sequence of tokens; `stock` has no leading tokens."""

    def sequence(
        self, x: Tensor, shape: tuple[int, int], pos: Tensor | None = None, sizes: Tensor | None = None
    ) -> Tensor:
        """The module's own attention over x (B, P + n, D): P leading tokens, then n of a grid of `shape` -> the same.

        Args:
            x: normalised tokens.
            shape: (H, W) of the grid, on which rotations depend.
            pos: (B, n) int64, where on the grid each token sits; None: all H * W in raster order.
            sizes: (1 or B, P + n), how often each token is attended to; None: once.
        """
        ...


class SequenceBlock(BlockView, Protocol):
    """A block that takes and gives tokens as one sequence, class token and registers before the grid's.

    Then `to_grid` drops what leads, and `from_grid` does not bring it back.
    """

    @property
    def prefix(self) -> int:
        """P, leading tokens; they never merge."""
        ...

    @property
    def attention(self) -> SequenceAttention: ...
