"""What one attention layer shows to a merge method: features on the grid, and how they fall into windows."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Layout:
    """A token grid (H, W) cut into windows of `window` x `window` tokens; 0 means the whole grid at once.

    Windows at the right and bottom edge are filled up with pads, as SAM does (64 -> 70 tokens a side).
    """

    grid: tuple[int, int]
    window: int = 0

    @property
    def side(self) -> tuple[int, int]:
        """Rows and columns of one attention call."""
        return (self.window, self.window) if self.window else self.grid

    @property
    def windows(self) -> tuple[int, int]:
        """Windows per column and per row of the grid."""
        return ceil(self.grid[0] / self.side[0]), ceil(self.grid[1] / self.side[1])

    @property
    def calls(self) -> int:
        """Attention calls of one image (1 if global); windows that are partly pads count."""
        return self.windows[0] * self.windows[1]

    @property
    def tokens(self) -> int:
        """N, tokens in one attention call, pads included."""
        return self.side[0] * self.side[1]

    def partition(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """Cut a map (B, H, W, C) into calls (B * windows, N, C); pads hold `fill`."""
        import torch.nn.functional as F

        B, H, W, C = x.shape
        (h, w), (nh, nw) = self.side, self.windows
        if nh * h > H or nw * w > W:
            x = F.pad(x, (0, 0, 0, nw * w - W, 0, nh * h - H), value=fill)
        return x.view(B, nh, h, nw, w, C).permute(0, 1, 3, 2, 4, 5).reshape(B * nh * nw, h * w, C)

    def unpartition(self, x: Tensor) -> Tensor:
        """Inverse of `partition`: (B * windows, N, C) -> (B, H, W, C), pads dropped."""
        (h, w), (nh, nw), (H, W) = self.side, self.windows, self.grid
        x = x.view(-1, nh, nw, h, w, x.shape[-1]).permute(0, 1, 3, 2, 4, 5).reshape(-1, nh * h, nw * w, x.shape[-1])
        return x[:, :H, :W]

    @property
    def has_pads(self) -> bool:
        """Whether the windows stick out of the grid."""
        return self.windows[0] * self.side[0] > self.grid[0] or self.windows[1] * self.side[1] > self.grid[1]

    def pads(self) -> tuple[tuple[bool, ...], ...]:
        """Which tokens are pads, as constants (windows, N)."""
        (h, w), (nh, nw), (H, W) = self.side, self.windows, self.grid
        return tuple(
            tuple(i * h + r >= H or j * w + c >= W for r in range(h) for c in range(w))
            for i in range(nh)
            for j in range(nw)
        )


@dataclass(frozen=True)
class Tokens:
    """`features` (B, H, W, d): the block's normalised tokens averaged over heads, before any window is cut.

    `region` (B, H, W) float, 1 where a token belongs to the prompt; None without a prompt.
    """

    features: Tensor
    layout: Layout
    region: Tensor | None = None
