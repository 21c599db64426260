"""A merge plan: which tokens stay, which join which, as integer indices only.

    pos     (B, n)  original index of every kept slot; a merged group keeps its destination's index
    slot    (B, N)  the slot that holds each original token
    sources (B, A)  the tokens merged away, A = N - n
    groups  G       the last G slots are destinations that receive sources; all others hold one token

Shapes are constants of (N, rate, method), never of the image. `slot[pos[j]] == j` for every slot j. Merging is
row gathers plus a mean over groups of equal size (cells) or a one-hot product (ragged groups); unmerging is one
row gather. No boolean masks and no scatter of values, so every plan exports to fixed-shape ONNX.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from torch import Tensor

REDUCTIONS = ("mean", "replace")


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Pick rows: x (B, N, D), index (B, k) -> (B, k, D)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


@dataclass(frozen=True)
class MergePlan:
    """Indices of one merge; see the module docstring for shapes (all int64).

    `reduce` is "mean" (destination and its sources, unweighted) or "replace" (the destination alone).
    `equal` promises that sources come in runs: group g owns sources[:, g*A/G : (g+1)*A/G].
    `fellows` (N, s) lists, where that is fixed, the group each token would be the destination of, itself first.
    `pads` lists, where that is fixed, the slots of each attention call of an image that hold pads alone.
    """

    pos: Tensor
    slot: Tensor
    sources: Tensor
    groups: int
    reduce: str = "mean"
    equal: bool = False
    fellows: Tensor | None = None
    pads: tuple[tuple[int, ...], ...] = ()

    # The tensors that hold the decisions: traced graphs name them, validation reads and replaces them.
    parts: ClassVar[tuple[str, ...]] = ("pos", "slot", "sources")

    @property
    def kept(self) -> int:
        """n, the number of slots."""
        return int(self.pos.shape[1])

    def merge(self, x: Tensor) -> Tensor:
        """Reduce tokens (B, N, D) to slots (B, n, D)."""
        import torch

        if self.reduce == "replace":
            return rows(x, self.pos)
        first = self.kept - self.groups
        single, into = rows(x, self.pos[:, :first]), self.pos[:, first:]
        if self.equal:
            if self.fellows is not None:
                members = self.fellows[into]
            else:
                members = torch.cat([into.unsqueeze(2), self.sources.view(into.shape[0], self.groups, -1)], 2)
            group = rows(x, members.flatten(1)).view(*members.shape, -1)
            return torch.cat([single, group.mean(2)], 1)
        dst, src = rows(x, into), rows(x, self.sources)
        # Which destination each source joins, as one-hot rows: a product stays exact and static in ONNX, while
        # scatter_reduce(mean) exports silently as last-write-wins.
        target = self.slot.gather(1, self.sources) - first
        onehot = (target[:, None, :] == torch.arange(self.groups, device=x.device)[None, :, None]).to(x.dtype)
        mean = (dst + onehot @ src) / (1 + onehot.sum(-1, keepdim=True))
        return torch.cat([single, mean], 1)

    def unmerge(self, y: Tensor) -> Tensor:
        """Copy slots (B, n, D) back to every token they hold (B, N, D)."""
        return rows(y, self.slot)

    def through(self, x: Tensor, compute: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """Merge x (B, N, D), compute(slots, pos) on the slots, unmerge the result."""
        return self.unmerge(compute(self.merge(x), self.pos))

    def through_real(self, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """As `through`, for what knows no neighbours: slots of pads are left out, and what pads get means nothing."""
        import torch

        if not any(self.pads):
            return self.through(x, lambda slots, _: compute(slots))
        B, n = self.pos.shape
        empty = {call * n + slot for call in range(B) for slot in self.pads[call % len(self.pads)]}
        real = [slot for slot in range(B * n) if slot not in empty]
        row = dict(zip(real, range(len(real))))
        y = compute(self.merge(x).flatten(0, 1).index_select(0, torch.tensor(real, device=x.device)))
        table = torch.tensor([row.get(slot, 0) for slot in range(B * n)], device=x.device)
        first = torch.arange(B, device=x.device).unsqueeze(1) * n
        return y[table[self.slot + first]]

    def destination(self) -> Tensor:
        """The original index each token was merged into, (B, N): the decision, whatever the slots' order."""
        return self.pos.gather(1, self.slot)


@dataclass(frozen=True)
class SplitPlan:
    """Some attention calls of an image stay dense, the others merge by a plan of their own.

    Args:
        order: (B, W) int64, the W calls of an image, dense ones first.
        dense: calls that stay dense, the same number for every image.
        merge: plan of the other calls, (B * (W - dense), ...) in that order.
    """

    order: Tensor
    dense: int
    merged: MergePlan

    parts: ClassVar[tuple[str, ...]] = ("order", "pos", "slot", "sources")

    @property
    def pos(self) -> Tensor:
        return self.merged.pos

    @property
    def slot(self) -> Tensor:
        return self.merged.slot

    @property
    def sources(self) -> Tensor:
        return self.merged.sources

    def through_real(self, x: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """`compute` on all slots of every call."""
        return self.through(x, lambda slots, _: compute(slots))

    def through(self, x: Tensor, compute: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """compute(tokens, None) on the dense calls of x (B * W, N, D), and as `MergePlan.through` on the others."""
        import torch

        B, W = self.order.shape
        x = x.view(B, W, -1)
        size = (-1, self.merged.slot.shape[1], x.shape[-1] // self.merged.slot.shape[1])
        picked = rows(x, self.order)
        dense = compute(picked[:, : self.dense].reshape(size), None)
        merged = self.merged.through(picked[:, self.dense :].reshape(size), compute)
        out = torch.cat([dense.reshape(B, self.dense, -1), merged.reshape(B, W - self.dense, -1)], 1)
        place = torch.zeros_like(self.order)
        place = place.scatter(1, self.order, torch.arange(W, device=place.device).expand(B, W))
        return rows(out, place).view(B * W, *size[1:])
