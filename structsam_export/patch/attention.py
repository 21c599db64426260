"""SAM's attention over merged tokens: its own weights and relative positions, each token at its destination's place."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn

# Elements of a table that holds both axes' relative positions for every place of the grid; larger ones would be more
# to read than one table for each axis.
TABLE_LIMIT = 1 << 20


def attention(attn: nn.Module, x: Tensor, pos: Tensor, side: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """SAM's attention over n tokens x (B, n, D) that sit at grid indices pos (B, n) of a (h, w) grid.

    Same weights and same relative positions as the stock module: q . Rh[row_i - row_j] + q . Rw[col_i - col_j],
    with each merged token at its destination's place. The bias is no (n, n) map of its own: queries carry q . R for
    every row and column, keys a one-hot of theirs, so that one product gives scores and bias. Exact.

    Returns:
        Output (B, n, D) and keys (B, heads, n, d).
    """
    import torch

    m: Any = attn
    B, n, D = x.shape
    # Projected one by one, (B, n, heads, d) each: nothing has to be cut apart, and the scale goes into weights.
    q, k, v = (
        project(m, x, i * D, (i + 1) * D, scale).view(B, n, m.num_heads, -1) for i, scale in enumerate(scales(m))
    )
    left, right = [q], [k]
    if m.use_rel_pos:
        left += [q @ (table / m.scale)[at] for table, at in relative_tables(m, pos, side)]
        onehot = lines(side, m.num_heads, k)[pos]
        right.append(onehot if onehot.shape[2] == m.num_heads else onehot.expand(-1, -1, m.num_heads, -1))
    scores = torch.cat(left, -1).transpose(1, 2) @ torch.cat(right, -1).permute(0, 2, 3, 1)
    y = scores.softmax(-1) @ v.transpose(1, 2)
    return m.proj(y.transpose(1, 2).reshape(B, n, D)), k.transpose(1, 2)


def scales(attn: nn.Module) -> tuple[float, float, float]:
    """What projections of queries, keys and values are multiplied by, so that scores need not be."""
    m: Any = attn
    return m.scale, 1.0, 1.0


def project(attn: nn.Module, x: Tensor, start: int, stop: int, scale: float = 1.0) -> Tensor:
    """Rows start to stop of the qkv projection, times `scale`: x (B, n, D) -> (B, n, stop - start)."""
    import torch.nn.functional as F

    m: Any = attn
    weight, bias = m.qkv.weight[start:stop], None if m.qkv.bias is None else m.qkv.bias[start:stop]
    if scale != 1.0:
        weight, bias = weight * scale, None if bias is None else bias * scale
    return F.linear(x, weight, bias)


def relative_tables(attn: nn.Module, pos: Tensor, side: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    """Tables (places, d, lines) and which place of each every token has (B, n): q . R of a token for all lines.

    Offsets are resized by SAM's own rule if the learnt table is not 2*size-1 long. One table for rows and columns
    where it is small, else one each.
    """
    import torch
    from segment_anything.modeling.image_encoder import get_rel_pos

    m: Any = attn
    h, w = side
    place = torch.arange(h * w, device=pos.device)
    by_row = get_rel_pos(h, h, m.rel_pos_h).transpose(1, 2)  # (h, d, h), first axis = line of the query
    by_column = get_rel_pos(w, w, m.rel_pos_w).transpose(1, 2)
    if h * w * (h + w) * by_row.shape[1] <= TABLE_LIMIT:
        return [(torch.cat([by_row[place // w], by_column[place % w]], -1), pos)]
    return [(by_row, (place // w)[pos]), (by_column, (place % w)[pos])]


def lines(side: tuple[int, int], heads: int, like: Tensor) -> Tensor:
    """Which row and which column each place of the grid is on: one-hot rows (places, 1 or heads, h + w).

    Repeated for every head where that is small, so that nothing is left to repeat at run time.
    """
    import torch

    h, w = side
    place = torch.arange(h * w, device=like.device)
    line = torch.arange(h + w, device=like.device)
    onehot = (line == (place // w)[:, None]) | (line == h + (place % w)[:, None])
    repeat = heads if onehot.numel() * heads <= TABLE_LIMIT else 1
    return onehot.to(like.dtype).unsqueeze(1).repeat(1, repeat, 1)
