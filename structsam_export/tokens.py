"""Tokens of one image on their grid: how blocks cut them into windows, and which of them a prompt shows."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

BOX_MARGIN, POINT_RADIUS = 1.0, 2.0  # tokens


@dataclass(frozen=True)
class WindowGrid:
    """A grid of `shape` (H, W) tokens, cut into attention windows of `window` x `window`; 0 means the whole grid.

    Windows at the right and bottom edge are filled up with pads, as SAM does (64 -> 70 tokens a side).
    """

    shape: tuple[int, int]
    window: int = 0

    @property
    def window_shape(self) -> tuple[int, int]:
        """Rows and columns of one window."""
        return (self.window, self.window) if self.window else self.shape

    @property
    def window_counts(self) -> tuple[int, int]:
        """Windows per column and per row of the grid."""
        (h, w), (H, W) = self.window_shape, self.shape
        return ceil(H / h), ceil(W / w)

    @property
    def windows(self) -> int:
        """Windows of one image (1 if global); those that are partly pads count."""
        return self.window_counts[0] * self.window_counts[1]

    @property
    def tokens(self) -> int:
        """N, tokens of one window, pads included."""
        return self.window_shape[0] * self.window_shape[1]

    @property
    def real_tokens(self) -> int:
        """T, tokens of one image, H * W, pads not counted."""
        return self.shape[0] * self.shape[1]

    @property
    def has_pads(self) -> bool:
        """Whether the windows stick out of the grid."""
        (h, w), (nh, nw), (H, W) = self.window_shape, self.window_counts, self.shape
        return nh * h > H or nw * w > W

    def partition(self, x: Tensor, fill: float = 0.0) -> Tensor:
        """Cut a map (B, H, W, C) into windows (B * windows, N, C); pads hold `fill`."""
        import torch.nn.functional as F

        B, H, W, C = x.shape
        (h, w), (nh, nw) = self.window_shape, self.window_counts
        if nh * h > H or nw * w > W:
            x = F.pad(x, (0, 0, 0, nw * w - W, 0, nh * h - H), value=fill)
        return x.view(B, nh, h, nw, w, C).permute(0, 1, 3, 2, 4, 5).reshape(B * nh * nw, h * w, C)

    def unpartition(self, x: Tensor) -> Tensor:
        """Inverse of `partition`: (B * windows, N, C) -> (B, H, W, C), pads dropped."""
        (h, w), (nh, nw), (H, W) = self.window_shape, self.window_counts, self.shape
        x = x.view(-1, nh, nw, h, w, x.shape[-1]).permute(0, 1, 3, 2, 4, 5).reshape(-1, nh * h, nw * w, x.shape[-1])
        return x[:, :H, :W]

    def pads(self) -> tuple[tuple[bool, ...], ...]:
        """Which tokens are pads, as constants (windows, N)."""
        (h, w), (nh, nw), (H, W) = self.window_shape, self.window_counts, self.shape
        return tuple(
            tuple(i * h + r >= H or j * w + c >= W for r in range(h) for c in range(w))
            for i in range(nh)
            for j in range(nw)
        )


@dataclass(frozen=True)
class Tokens:
    """What a block shows to a method that merges.

    Args:
        features: (B, H, W, d) float, normalised tokens averaged over heads, before any window is cut.
        grid: how the block cuts them into windows.
        region: (B, H, W) float, 1 where a token belongs to the prompt; None without a prompt.
    """

    features: Tensor
    grid: WindowGrid
    region: Tensor | None = None


def prompt_region(boxes: Tensor, shape: tuple[int, int], patch: int) -> Tensor:
    """Which tokens belong to the prompt.

    Args:
        boxes: (B, 4) float, x0 y0 x1 y1 in input pixels. A box of no width and no height is a point.
        shape: (H, W) tokens of the grid.
        patch: side of a token in pixels.

    Returns:
        (B, H, W) float32 of 0 and 1: tokens whose patch meets the box grown by one token, or the square of two
        tokens around a point.
    """
    import torch

    x0, y0, x1, y1 = (boxes.float() / patch).unbind(-1)
    is_point = ((x1 - x0).abs() + (y1 - y0).abs()) == 0
    grow = torch.where(is_point, POINT_RADIUS, BOX_MARGIN)

    def inside(low: Tensor, high: Tensor, size: int) -> Tensor:
        line = torch.arange(size, device=boxes.device, dtype=torch.float32)
        return ((line + 1 > (low - grow).unsqueeze(-1)) & (line < (high + grow).unsqueeze(-1))).float()

    return inside(y0, y1, shape[0]).unsqueeze(-1) * inside(x0, x1, shape[1]).unsqueeze(1)
