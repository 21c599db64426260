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

from dataclasses import dataclass
from typing import TYPE_CHECKING

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
    """

    pos: Tensor
    slot: Tensor
    sources: Tensor
    groups: int
    reduce: str = "mean"
    equal: bool = False

    @property
    def kept(self) -> int:
        """n, the number of slots."""
        return int(self.pos.shape[1])

    def merge(self, x: Tensor) -> Tensor:
        """Reduce tokens (B, N, D) to slots (B, n, D)."""
        import torch

        kept = rows(x, self.pos)
        if self.reduce == "replace":
            return kept
        single, dst = kept[:, : self.kept - self.groups], kept[:, self.kept - self.groups :]
        src = rows(x, self.sources)
        if self.equal:
            size = self.sources.shape[1] // self.groups
            cell = torch.cat([dst.unsqueeze(2), src.view(src.shape[0], self.groups, size, -1)], 2)
            return torch.cat([single, cell.mean(2)], 1)
        # Which destination each source joins, as one-hot rows: a product stays exact and static in ONNX, while
        # scatter_reduce(mean) exports silently as last-write-wins.
        target = self.slot.gather(1, self.sources) - (self.kept - self.groups)
        onehot = (target[:, None, :] == torch.arange(self.groups, device=x.device)[None, :, None]).to(x.dtype)
        mean = (dst + onehot @ src) / (1 + onehot.sum(-1, keepdim=True))
        return torch.cat([single, mean], 1)

    def unmerge(self, y: Tensor) -> Tensor:
        """Copy slots (B, n, D) back to every token they hold (B, N, D)."""
        return rows(y, self.slot)

    def destination(self) -> Tensor:
        """The original index each token was merged into, (B, N): the decision, whatever the slots' order."""
        return self.pos.gather(1, self.slot)
