"""Lines of tokens that lose some: who joins which neighbour, whose values stay, where each token goes (`cubist`)."""

from __future__ import annotations

from functools import lru_cache
from typing import TYPE_CHECKING

from structsam_export.methods.matching import APART, unit_features
from structsam_export.methods.plan import rows

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.tokens import WindowGrid

LEFT, RIGHT = 1, 2  # what an odd token does; 0 stays
FROM_RIGHT, FROM_LEFT = 1, 2  # whose value an even token's channel has; 0 its own


def line_joins(x: Tensor, removed: int, edges: tuple[tuple[float, ...], ...] | None) -> Tensor:
    """What each odd token of a line does: the `removed` that are most like a neighbour join that one.

    Args:
        x: (R, N, C) lines.
        removed: r <= N // 2; which of exactly tied tokens join is the runtime's choice.
        edges: scores that replace those of pads, as `pad_edges` gives them for the lines of one image.

    Returns:
        (R, N // 2) int64 of 0, LEFT and RIGHT.
    """
    import torch
    import torch.nn.functional as F

    R, N, _ = x.shape
    if removed == 0:
        return torch.zeros(R, N // 2, dtype=torch.int64, device=x.device)
    # Minus the squared distance of unit vectors is 2 cos - 2: the same order, with all digits where cosines are near 1.
    unit = unit_features(x.float())
    score = -(unit[:, 1:] - unit[:, :-1]).square().sum(-1)
    if edges is not None:
        instead = torch.tensor(edges, device=score.device, dtype=score.dtype).repeat(R // len(edges), 1)
        score = torch.where(instead == 0, score, instead)
    # A last odd token has no right neighbour.
    left, right = F.pad(score, (0, 1 - N % 2), value=-2 * APART).view(R, N // 2, 2).unbind(-1)
    side = torch.where(right > left, RIGHT, LEFT)
    if removed == N // 2:
        return side
    best = torch.topk(torch.maximum(left, right), removed, dim=1).indices
    return torch.zeros_like(side).scatter(1, best, side.gather(1, best))


def merge_lines(x: Tensor, joins: Tensor, removed: int) -> tuple[Tensor, Tensor]:
    """Shorten lines (R, N, C) -> (R, N - r, C): even tokens take over the largest values that join them.

    Second, whose values they are, as in `GridPlan.row_values`; one zero if no token goes.
    """
    import torch
    import torch.nn.functional as F

    if removed == 0:
        return x, torch.zeros(1, 1, 1, dtype=torch.int64, device=x.device)
    N = x.shape[1]
    even, odd, join = x[:, ::2], x[:, 1::2], joins.unsqueeze(-1)
    # An even token may get company from both sides. Where the line ends with one, evens outnumber odds.
    from_right = F.pad(torch.where(join == LEFT, odd, 0), (0, 0, 0, N % 2))
    from_left = F.pad(torch.where(join == RIGHT, odd, 0), (0, 0, 1, 0))[:, : even.shape[1]]
    own, right, left = even.abs(), from_right.abs(), from_left.abs()
    # A zero never wins.
    values = torch.where(left > torch.maximum(own, right), FROM_LEFT, torch.where(right > own, FROM_RIGHT, 0))
    even = torch.where(values == FROM_RIGHT, from_right, torch.where(values == FROM_LEFT, from_left, even))
    # Those that stay, in their order: all keys differ.
    place = torch.arange(N, device=x.device, dtype=torch.float32)
    key = torch.cat([-place[::2].expand(len(x), -1), -place[1::2] - 2 * N * (joins > 0).float()], 1)
    return rows(torch.cat([even, odd], 1), torch.topk(key, N - removed, dim=1).indices), values


def line_slots(joins: Tensor, length: int) -> Tensor:
    """Where each token of a line went: (R, N // 2) -> (R, N) int64 places in the shortened line."""
    import torch

    join = torch.stack([torch.zeros_like(joins), joins], -1).flatten(1)
    join = torch.cat([join, join.new_zeros(len(join), 1)], 1) if length % 2 else join
    # A token that goes leaves the count at its left neighbour's place.
    return (join == 0).long().cumsum(1) - 1 + (join == RIGHT).long()


@lru_cache(maxsize=64)
def pad_edges(
    grid: WindowGrid, removed: tuple[int, int]
) -> tuple[tuple[tuple[float, ...], ...], tuple[tuple[float, ...], ...]] | tuple[None, None]:
    """Scores of edges with pads in all lines of one image, as constants, 0 for edges without; None without pads.

    Returns:
        (windows * h, w - 1) for rows, and (windows * (w - r_w), h - 1) for the columns of the row-reduced grid.
        Pads stay together at the end there: how many real tokens a row loses depends on shapes only.
    """
    if not grid.has_pads:
        return None, None
    (h, w), (nh, nw), (H, W) = grid.window_shape, grid.window_counts, grid.shape
    real = [(min(h, H - i * h), min(w, W - j * w)) for i in range(nh) for j in range(nw)]
    across = tuple(edges_of_line(right if r < bottom else 0, w) for bottom, right in real for r in range(h))
    down = tuple(
        edges_of_line(bottom if c < real_left(right, w, removed[1]) else 0, h)
        for bottom, right in real
        for c in range(w - removed[1])
    )
    return across, down


def edges_of_line(real: int, length: int) -> tuple[float, ...]:
    """Scores of a line's edges that replace those of pads, where pads follow `real` tokens.

    Two pads merge before anything else, each pair with its own score: no ties, whatever a runtime's sort does. A pad
    and a real token merge after all real ones; the value is then the real one's, for a pad is zero.
    """
    return tuple(2 - k / length if k >= real else -APART if k == real - 1 else 0.0 for k in range(length - 1))


def real_left(real: int, length: int, removed: int) -> int:
    """Real tokens that stay in a line of `real` tokens and then pads."""
    single = real == length - 1 and real % 2 == 1  # an odd pad at the end, next to real tokens only
    pads = length // 2 - real // 2 - single
    return real - min(max(removed - pads, 0), real // 2)
