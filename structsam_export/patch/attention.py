"""SAM's attention over merged tokens: its own weights and relative positions, each token at its destination's place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn


def attention(attn: nn.Module, x: Tensor, pos: Tensor, side: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """SAM's attention over n tokens x (B, n, D) that sit at grid indices pos (B, n) of a (h, w) grid.

    Same weights and same relative positions as the stock module: q . Rh[row_i - row_j] + q . Rw[col_i - col_j],
    with each merged token at its destination's place.

    Returns:
        Output (B, n, D) and keys (B, heads, n, d).
    """
    import torch

    m: Any = attn
    B, n, D = x.shape
    q, k, v = m.qkv(x).view(B, n, 3, m.num_heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    scores = (q * m.scale) @ k.transpose(-2, -1)
    if m.use_rel_pos:
        h, w = side
        place = torch.arange(h * w, device=x.device)
        scores = scores + relative_bias(q, (place // w)[pos], h, m.rel_pos_h)
        scores = scores + relative_bias(q, (place % w)[pos], w, m.rel_pos_w)
    y = scores.softmax(-1) @ v
    return m.proj(y.transpose(1, 2).reshape(B, n, D)), k


def relative_bias(q: Tensor, at: Tensor, size: int, table: Tensor) -> Tensor:
    """Relative position bias along one axis.

    Args:
        q: (B, heads, n, c) unscaled queries.
        at: (B, n) int64 coordinate of each token on this axis.
        size: length of the axis.
        table: (L, c) learnt embedding of the offsets, resized by SAM's own rule if L != 2*size-1.

    Returns:
        (B, heads, n, n): q_i . R[at_i - at_j].
    """
    import torch
    import torch.nn.functional as F
    from segment_anything.modeling.image_encoder import get_rel_pos

    B, n = at.shape
    by_row = get_rel_pos(size, size, table)  # (size, size, c), row = coordinate of the query
    R = F.embedding(at, by_row.reshape(size, -1)).view(B, n, size, -1)
    to_line = torch.einsum("bhnc,bnkc->bhnk", q, R)
    line = torch.arange(size, device=at.device)
    onehot = (at.unsqueeze(1) == line[:, None]).to(q.dtype)  # (B, size, n): which key sits on which line
    return to_line @ onehot.unsqueeze(1)
