"""Bipartite soft matching: each source joins its most similar destination, the most similar sources first.

Token Merging (ToMe, arXiv 2210.09461) and its relatives, in a form of fixed shapes. Pads (all-zero tokens of windows
that stick out of the grid) merge into pads first and never share a slot with a real token, unless `compat` asks for
the published behaviour.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import TYPE_CHECKING

from structsam_export.methods.plan import MergePlan, rows

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.tokens import WindowGrid

# Squared distance between a pad and a real token: beyond the 4 that lie between opposite unit vectors.
APART = 16.0


def unit_features(x: Tensor) -> Tensor:
    """Rows of unit length; zero rows stay zero."""
    import torch

    return x * torch.rsqrt(x.square().sum(-1, keepdim=True).clamp(min=1e-24))


def pick(x: Tensor, index: Tensor) -> Tensor:
    """Rows of x (B, N, d) at index (k,), the same for all, or (B, k)."""
    return x.index_select(1, index) if index.dim() == 1 else rows(x, index)


def pad_mask(grid: WindowGrid, like: Tensor) -> Tensor:
    """1 where a token is a pad, (B, N) of the type of `like` (B, ...), whose B is images x windows."""
    import torch

    pads = torch.tensor(grid.pads(), device=like.device, dtype=like.dtype)
    return pads.repeat(like.shape[0] // pads.shape[0], 1)


@lru_cache(maxsize=256)
def mergeable(grid: WindowGrid, dst: tuple[int, ...]) -> int:
    """Sources that every window can merge without mixing pads and real tokens, for fixed destinations."""
    least, targets = grid.tokens - len(dst), set(dst)
    for pads in grid.pads() if grid.has_pads else ():
        pad_dst = sum(pads[t] for t in targets)
        pad_src = sum(pads) - pad_dst
        real_src = grid.tokens - len(targets) - pad_src
        least = min(least, (real_src if pad_dst < len(targets) else 0) + (pad_src if pad_dst else 0))
    return least


def similarity(metric: Tensor, src: Tensor, dst: Tensor, grid: WindowGrid, plain: bool) -> tuple[Tensor, Tensor]:
    """How alike sources and destinations are.

    Args:
        metric: (B, N, d) float32 features, zero rows for pads.
        src, dst: token indices, (A,) and (D,) or (B, A) and (B, D).
        grid: how the block cuts its tokens into windows.
        plain: cosine as published, pads not handled.

    Returns:
        (B, A, D) scores, and (B, A, 1) that make scores comparable between sources when added.

    Minus the squared distance of unit vectors is 2 cos - 2: the same order. In flat regions all cosines are 1 - 1e-5
    and FP32 keeps two digits of what tells them apart, so that runtimes would disagree; distances to a common centre
    keep all of them.
    """
    import torch

    unit = unit_features(metric)
    if plain:
        cosine = pick(unit, src) @ pick(unit, dst).transpose(1, 2)
        return cosine, torch.zeros_like(cosine[..., :1])
    unit = unit - unit.mean(1, keepdim=True)
    if not grid.has_pads:
        a, b = pick(unit, src), pick(unit, dst)
        return 2 * (a @ b.transpose(1, 2)) - b.square().sum(-1).unsqueeze(1), -a.square().sum(-1, keepdim=True)
    pads = pad_mask(grid, unit).unsqueeze(-1)
    unit = torch.cat([unit, pads * APART**0.5], -1)
    a, b = pick(unit, src), pick(unit, dst)
    # All pads are equal; a different bonus for each leaves no tie for a runtime to break, and puts them first.
    place = pads * torch.arange(grid.tokens, device=unit.device).view(1, -1, 1) / grid.tokens
    later = pick(place, dst).squeeze(-1) / 2
    scores = 2 * (a @ b.transpose(1, 2)) - (b.square().sum(-1) + later).unsqueeze(1)
    return scores, pick(pads + place, src) - a.square().sum(-1, keepdim=True)


def match(
    metric: Tensor,
    src: Tensor,
    dst: Tensor,
    removed: int,
    grid: WindowGrid,
    *,
    protected: Tensor | None = None,
    plain: bool = False,
) -> MergePlan:
    """Merge the `removed` sources that are most similar to a destination into it.

    Args:
        metric: (B, N, d) features, zero rows for pads.
        src, dst: token indices, fixed (A,), (D,) or per window (B, A), (B, D).
        removed: r <= A; r = A needs no sorting.
        grid: how the block cuts its tokens into windows.
        protected: (B, P) tokens that neither move nor receive; only with indices per window.
        plain: as in `similarity`.

    Returns:
        Plan with slots [protected, sources that stay, destinations].
    """
    import torch

    scores, offset = similarity(metric.float(), src, dst, grid, plain)
    B, A, D = scores.shape
    device = scores.device
    best = scores.argmax(-1)
    src, dst, fixed = src.expand(B, A), dst.expand(B, D), src if src.dim() == 1 else None
    fixed_dst = dst[0] if fixed is not None else None
    P = 0 if protected is None else int(protected.shape[1])
    first = P + A - removed
    if removed == A:
        staying, sources, of_src = src[:, :0], src, first + best
    else:
        likeness = scores.amax(-1) + offset.squeeze(-1)
        # Pads that nobody handles tie with each other by the dozen, and then go by index.
        order = comparison_order(likeness) if plain and grid.has_pads else torch.topk(likeness, A, dim=1).indices
        sources, staying = src.gather(1, order[:, :removed]), src.gather(1, order[:, removed:])
        place = torch.zeros_like(order).scatter(1, order, torch.arange(A, device=device).expand(B, A))
        of_src = torch.where(place < removed, first + best, P + place - removed)
    parts = [] if protected is None else [protected]
    pos = torch.cat([*parts, staying, dst], 1)
    of_dst = (first + torch.arange(D, device=device)).expand(B, D)
    of_protected = [torch.arange(P, device=device).expand(B, P)] if P else []
    slots = torch.cat([*of_protected, of_src, of_dst], 1)
    if fixed is not None and fixed_dst is not None:
        slot = slots.index_select(1, inverse(torch.cat([fixed, fixed_dst])))
    else:
        slot = torch.zeros_like(slots).scatter(1, torch.cat([*parts, src, dst], 1), slots)
    return MergePlan(pos, slot, sources, D)


def inverse(order: Tensor) -> Tensor:
    """Inverse of a constant permutation (N,)."""
    import torch

    return torch.zeros_like(order).scatter(0, order, torch.arange(len(order), device=order.device))


def fixed_partition(grid: WindowGrid, dst: Sequence[int], device: object) -> tuple[Tensor, Tensor]:
    """(sources, destinations) as index tensors: every token that is no destination is a source, in raster order."""
    import torch

    targets = set(dst)
    src = [t for t in range(grid.tokens) if t not in targets]
    return torch.tensor(src, device=device), torch.tensor(list(dst), device=device)  # type: ignore[arg-type]


def comparison_rank(*keys: Tensor) -> Tensor:
    """Rank (B, N) int64 of every entry of (B, N) keys, from high to low by the first key, then the next, then index.

    By comparing all pairs: TensorRT's TopK stops at 3840 elements, and ties would be the runtime's choice.
    """
    import torch

    index = torch.arange(keys[0].shape[1], device=keys[0].device)
    before = index < index.unsqueeze(1)
    for key in reversed(keys):
        mine, other = key.unsqueeze(2), key.unsqueeze(1)
        before = (other > mine) | ((other == mine) & before)
    return before.to(torch.float32).sum(-1).to(torch.int64)  # float32 counts to 2^24 exactly


def comparison_order(*keys: Tensor) -> Tensor:
    """Indices (B, N) that sort (B, N) keys as `comparison_rank` does."""
    import torch

    rank = comparison_rank(*keys)
    return torch.zeros_like(rank).scatter(1, rank, torch.arange(rank.shape[1], device=rank.device).expand_as(rank))


def alternate_plan(metric: Tensor, energy: Tensor, removed: int, grid: WindowGrid, plain: bool) -> MergePlan:
    """PiToMe's rule: the 2r tokens of highest energy are sources and destinations in turn, the rest is protected.

    Args:
        metric: (B, N, d) features, zero rows for pads.
        energy: (B, N) float32, high merges first.
        removed: r <= N/2.
        grid: how the block cuts its tokens into windows.
        plain: pads not handled.
    """
    import torch

    if grid.has_pads and not plain:
        instead = pad_energy(grid)
        known = torch.tensor(instead, device=energy.device, dtype=energy.dtype)
        known = known.repeat(energy.shape[0] // known.shape[0], 1)
        energy = torch.where(known == 0, energy, known)
    order = comparison_order(energy)
    turn = order[:, : 2 * removed].reshape(-1, removed, 2)
    src, dst = turn.unbind(-1)
    return match(metric, src, dst, removed, grid, protected=order[:, 2 * removed :], plain=plain)


@lru_cache(maxsize=64)
def alternating(grid: WindowGrid, plain: bool) -> int:
    """Sources that `alternate_plan` can merge: half of all tokens.

    One less where a window would be left with a single real token between pads, which takes the role of a source.
    """
    N = grid.tokens
    single = not plain and N % 2 == 0 and any(N - sum(pads) == 1 for pads in grid.pads())
    return N // 2 - single


@lru_cache(maxsize=64)
def pad_energy(grid: WindowGrid) -> tuple[tuple[float, ...], ...]:
    """Energy that puts pads first, in raster order; 0 for real tokens.

    A leftover pad of an odd number would be left with a real partner: it comes last instead, where it is protected or
    a destination.
    """
    rows_of = []
    for pads in grid.pads():
        energy, seen, total = [], 0, sum(pads)
        for pad in pads:
            seen += pad
            last = total % 2 and seen == total
            energy.append(0.0 if not pad else -1e6 if last else 1e6 - seen)
        rows_of.append(tuple(energy))
    return tuple(rows_of)
