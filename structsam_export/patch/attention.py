"""A block's attention over merged tokens: its own weights and positions, each token at its destination's place."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.views import AttentionView

# Elements of a table that holds both axes' relative positions for every place of the grid; larger ones would be more
# to read than one table for each axis.
TABLE_LIMIT = 1 << 20


def attention(
    attn: AttentionView, x: Tensor, pos: Tensor, shape: tuple[int, int], sizes: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """The stock attention among n tokens x (B, n, D) that sit at indices pos (B, n) of a window of `shape` (h, w).

    Same weights and same relative positions as the stock module: q . Rh[row_i - row_j] + q . Rw[col_i - col_j],
    with each merged token at its destination's place. The bias is no (n, n) map of its own: queries carry q . R for
    every row and column, keys a one-hot of theirs, so that one product gives scores and bias. Exact.
    With `sizes` (1 or B, n), a token that stands for s counts s times: one channel more adds log s to its scores.

    Returns:
        Output (B, n, D) and keys (B, heads, n, d).
    """
    import torch

    B, n, D = x.shape
    # Projected one by one, (B, n, heads, d) each: nothing has to be cut apart, and the scale goes into weights.
    scales = {"q": attn.scale, "k": 1.0, "v": 1.0}
    q, k, v = (project(attn, x, part, scale).view(B, n, attn.heads, -1) for part, scale in scales.items())
    left, right = [q], [k]
    if attn.has_positions:
        left += [q @ (table / attn.scale)[at] for table, at in position_tables(attn, pos, shape)]
        onehot = lines(shape, attn.heads, k)[pos]
        right.append(onehot if onehot.shape[2] == attn.heads else onehot.expand(-1, -1, attn.heads, -1))
    if sizes is not None:
        left.append(q.new_ones(1, 1, 1, 1).expand(B, n, attn.heads, -1))
        right.append(sizes.log().to(k.dtype)[:, :, None, None].expand(B, -1, attn.heads, -1))
    scores = torch.cat(left, -1).transpose(1, 2) @ torch.cat(right, -1).permute(0, 2, 3, 1)
    y = scores.softmax(-1) @ v.transpose(1, 2)
    return attn.output(y.transpose(1, 2).reshape(B, n, D)), k.transpose(1, 2)


def project(attn: AttentionView, x: Tensor, parts: str, scale: float = 1.0) -> Tensor:
    """Projections named by letters ("q", "k", "v", "kv") times `scale`: x (B, n, D) -> (B, n, len(parts) * D)."""
    import torch.nn.functional as F

    weight, bias = attn.linear(parts)
    if scale != 1.0:
        weight, bias = weight * scale, None if bias is None else bias * scale
    return F.linear(x, weight, bias)


def position_tables(attn: AttentionView, pos: Tensor, shape: tuple[int, int]) -> list[tuple[Tensor, Tensor]]:
    """Tables (places, d, lines) and which place of each every token has (B, n): q . R of a token for all lines.

    One table for rows and columns where it is small, else one each.
    """
    import torch

    h, w = shape
    place = torch.arange(h * w, device=pos.device)
    by_row = attn.positions(0, h).transpose(1, 2)  # (h, d, h), first axis = line of the query
    by_column = attn.positions(1, w).transpose(1, 2)
    if h * w * (h + w) * by_row.shape[1] <= TABLE_LIMIT:
        return [(torch.cat([by_row[place // w], by_column[place % w]], -1), pos)]
    return [(by_row, (place // w)[pos]), (by_column, (place % w)[pos])]


def lines(shape: tuple[int, int], heads: int, like: Tensor) -> Tensor:
    """Which row and which column each place of a window is on: one-hot rows (places, 1 or heads, h + w).

    Repeated for every head where that is small, so that nothing is left to repeat at run time.
    """
    import torch

    h, w = shape
    place = torch.arange(h * w, device=like.device)
    line = torch.arange(h + w, device=like.device)
    onehot = (line == (place // w)[:, None]) | (line == h + (place % w)[:, None])
    repeat = heads if onehot.numel() * heads <= TABLE_LIMIT else 1
    return onehot.to(like.dtype).unsqueeze(1).repeat(1, repeat, 1)
