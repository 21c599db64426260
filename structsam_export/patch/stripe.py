"""Global attention with all queries and a part of the keys.

Weights, relative positions and the softmax are the block's own; what is not visited is left out of the softmax, not
approximated. Relative positions are q.R in lines of the grid times the key's one-hot row and column, so that scores are
sums of products, which `rewrite.relative_position` folds into one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from structsam_export.patch.attention import project

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.roles import Keys
    from structsam_export.views import AttentionView

NEVER = -1e4  # added to a score that must not count; exp of it is 0 in every precision, and FP16 can hold it


def all_keys(attn: AttentionView, x: Tensor) -> Tensor:
    """The keys of every token, x (B, H, W, D) -> (B, heads, N, d), before any position."""
    return heads_of(attn, project(attn, x.flatten(1, 2), "k"))[0]


def stripe_attention(attn: AttentionView, x: Tensor, plan: Keys) -> Tensor:
    """Attention of all tokens x (B, H, W, D) to the keys of a plan -> (B, H, W, D)."""
    B, H, W, D = x.shape
    tokens = x.flatten(1, 2)
    q = heads_of(attn, project(attn, tokens, "q"))[0]
    left = query_factors(attn, q, (H, W))
    attend = tiled if plan.own_groups((H, W)) else striped
    y = attend(attn, tokens, left, plan, (H, W))
    return attn.output(y.transpose(1, 2).reshape(B, H, W, D))


def striped(attn: AttentionView, x: Tensor, left: list[Tensor], plan: Keys, shape: tuple[int, int]) -> Tensor:
    """Each query over plan.keys alone: x (B, N, D), query factors -> (B, heads, N, d)."""
    k, v = heads_of(attn, project(attn, plan.pick(x), "kv"))  # only the visited rows are projected
    right = [k.transpose(-2, -1), *stripe_lines(plan, shape, k)]
    scores = left[0] @ right[0]
    for a, b in zip(left[1:], right[1:]):
        scores = scores + a @ b
    return scores.softmax(-1) @ v


def tiled(attn: AttentionView, x: Tensor, left: list[Tensor], plan: Keys, shape: tuple[int, int]) -> Tensor:
    """Each query over plan.keys and its own group of tokens: x (B, N, D), query factors -> (B, heads, N, d).

    Queries are listed group by group, so that no scores need to be moved.
    """
    import torch

    N = x.shape[1]
    listed = plan.own_groups(shape)
    groups = torch.tensor(listed, device=x.device)  # (G, n)
    order = groups.flatten()
    kv = project(attn, x, "kv")
    k, v = heads_of(attn, plan.pick(kv))
    own_k, own_v = (t.index_select(2, order).unflatten(2, groups.shape) for t in heads_of(attn, kv))

    q = torch.cat(left, -1).index_select(2, order)  # the sum of products as one, in both parts of the softmax
    lines = stripe_lines(plan, shape, k) if len(left) > 1 else []
    shared = q @ beside(k.transpose(-2, -1), lines)
    lines = lines_of(groups, shape, k) if len(left) > 1 else []
    own = q.unflatten(2, groups.shape) @ beside(own_k.transpose(-2, -1), [t.squeeze(1) for t in lines])
    twice = plan.membership(N)[: 1 if plan.fixed else None].index_select(1, order)
    own = own + NEVER * twice.to(q.dtype).view(-1, 1, len(groups), 1, groups.shape[1])

    weights = torch.cat([shared, own.flatten(2, 3)], -1).softmax(-1)
    to_shared, to_own = weights.split([shared.shape[-1], own.shape[-1]], -1)
    y = to_shared @ v
    if groups.shape[1] == 1:  # a token alone: of a product, onnxscript would drop the reshapes that it needs
        y = y + to_own * own_v.flatten(2, 3)
    else:
        y = y + (to_own.unflatten(2, groups.shape) @ own_v).flatten(2, 3)
    flat = [token for group in listed for token in group]
    return y.index_select(2, torch.tensor(sorted(range(N), key=flat.__getitem__), device=x.device))


def query_factors(attn: AttentionView, q: Tensor, shape: tuple[int, int]) -> list[Tensor]:
    """What queries (B, heads, N, d) bring to the scores: q * scale, then q.Rh (.., N, H) and q.Rw (.., N, W)."""
    import torch

    if not attn.has_positions:
        return [q * attn.scale]
    H, W = shape
    at = q.unflatten(2, shape)
    rel_h = torch.einsum("bnhwc,hkc->bnhwk", at, attn.positions(0, H))
    rel_w = torch.einsum("bnhwc,wkc->bnhwk", at, attn.positions(1, W))
    return [q * attn.scale, rel_h.flatten(2, 3), rel_w.flatten(2, 3)]


def stripe_lines(plan: Keys, shape: tuple[int, int], like: Tensor) -> list[Tensor]:
    """One-hot rows and columns of the plan's keys, (B, 1, H, nk) and (B, 1, W, nk); B is 1 if the keys are fixed."""
    return lines_of(plan.keys[:1] if plan.fixed else plan.keys, shape, like)


def lines_of(index: Tensor, shape: tuple[int, int], like: Tensor) -> list[Tensor]:
    """Which row and which column of the grid each token of index (M, n) is on: one-hot (M, 1, H, n), (M, 1, W, n)."""
    import torch

    H, W = shape
    place = torch.arange(H * W, device=index.device)
    coordinates = ((place // W)[index], (place % W)[index])
    return [
        (at[:, None, None, :] == torch.arange(size, device=index.device)[:, None]).to(like.dtype)
        for at, size in zip(coordinates, shape)
    ]


def beside(keys: Tensor, lines: list[Tensor]) -> Tensor:
    """Keys (..., d, n) with their one-hot lines below them, spread over batch and heads."""
    import torch

    return torch.cat([keys, *(t.expand(*keys.shape[:-2], -1, -1) for t in lines)], -2)


def heads_of(attn: AttentionView, x: Tensor) -> tuple[Tensor, ...]:
    """Split projections (B, n, parts * D) into tensors (B, heads, n, d)."""
    B, n, width = x.shape
    parts: tuple[Tensor, ...] = x.view(B, n, width // attn.dim, attn.heads, -1).permute(2, 0, 3, 1, 4).unbind(0)
    return parts
