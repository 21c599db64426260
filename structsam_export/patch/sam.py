"""Host: `segment_anything`'s ImageEncoderViT.

A patched block merges between norm1 and qkv and unmerges after proj: `proj(unmerge(y)) == unmerge(proj(y))`, so
proj runs on n tokens at no loss. The MLP, the norms and the residual stay dense. Weights and state-dict keys are
untouched: only the block's class changes.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from structsam_export.methods.tokens import Layout, Tokens
from structsam_export.models.geometry import from_encoder

if TYPE_CHECKING:
    from torch import Tensor, nn

    from structsam_export.methods import Method
    from structsam_export.methods.plan import MergePlan


def apply(encoder: Any, method: Method, layers: Sequence[int]) -> None:
    """Patch the chosen blocks; blocks where the method removes nothing stay stock."""
    geometry = from_encoder(encoder)
    for index in sorted(set(layers)):
        block = encoder.blocks[index]
        if method.removed(geometry.layout(index)) == 0:
            continue
        block._structsam = (index, method)
        block.__class__ = _merging_class(type(block))


def remove(encoder: Any) -> None:
    """Give every patched block its own class back."""
    for block in encoder.blocks:
        if hasattr(block, "_structsam"):
            block.__class__ = type(block).__bases__[0]
            del block._structsam


@contextmanager
def recording(encoder: Any) -> Iterator[dict[int, MergePlan]]:
    """Collect the plan of every patched block during forward passes in the `with` block, by layer."""
    plans: dict[int, MergePlan] = {}
    blocks = [b for b in encoder.blocks if hasattr(b, "_structsam")]
    for block in blocks:
        block._plans = plans
    try:
        yield plans
    finally:
        for block in blocks:
            del block._plans


def _merging_class(stock: type) -> type:
    """A subclass of the stock block whose forward merges."""
    return type(f"Merging{stock.__name__}", (stock,), {"forward": _forward})


def _forward(block: Any, x: Tensor) -> Tensor:
    """Block forward with merged attention: x (B, H, W, D) -> (B, H, W, D)."""
    import torch

    index, method = block._structsam
    y = block.norm1(x)
    B, H, W, D = y.shape
    layout = Layout((H, W), block.window_size)
    with torch.no_grad():
        features = y.view(B, H, W, block.attn.num_heads, -1).mean(3)
        plan = method.plan(Tokens(features, layout))
    if hasattr(block, "_plans"):
        block._plans[index] = plan
    merged = plan.merge(layout.partition(y))
    out = plan.unmerge(attention(block.attn, merged, plan.pos, layout.side))
    x = x + layout.unpartition(out)
    return x + block.mlp(block.norm2(x))


def attention(attn: nn.Module, x: Tensor, pos: Tensor, side: tuple[int, int]) -> Tensor:
    """SAM's attention over n tokens x (B, n, D) that sit at grid indices pos (B, n) of a (h, w) grid.

    Same weights and same relative positions as the stock module: q . Rh[row_i - row_j] + q . Rw[col_i - col_j],
    with each merged token at its destination's place.
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
    return m.proj(y.transpose(1, 2).reshape(B, n, D))  # type: ignore[no-any-return]


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
