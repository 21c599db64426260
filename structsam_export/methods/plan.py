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

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from structsam_export.tokens import WindowGrid

REDUCTIONS = ("mean", "replace")


def rows(x: Tensor, index: Tensor) -> Tensor:
    """Pick rows: x (B, N, D), index (B, k) -> (B, k, D)."""
    return x.gather(1, index.unsqueeze(-1).expand(-1, -1, x.shape[-1]))


@dataclass(frozen=True)
class MergePlan:
    """Indices of one merge; see the module docstring for shapes (all int64).

    `reduce` is "mean" (destination and its sources, unweighted) or "replace" (the destination alone).
    `equal` promises that sources come in runs: group g owns sources[:, g*A/G : (g+1)*A/G].
    `group_members` (N, s) lists, where that is fixed, the group each token would be the destination of, itself first.
    `pads` lists, where that is fixed, the slots of each window of an image that hold nothing but pads.
    `proportional`: attention counts every slot as often as it has tokens (see `sizes`).
    """

    pos: Tensor
    slot: Tensor
    sources: Tensor
    groups: int
    reduce: str = "mean"
    equal: bool = False
    group_members: Tensor | None = None
    pads: tuple[tuple[int, ...], ...] = ()
    proportional: bool = False

    PARTS: ClassVar[tuple[str, ...]] = ("pos", "slot", "sources")
    AT_ONCE: ClassVar[bool] = True

    @property
    def kept(self) -> int:
        """n, the number of slots."""
        return int(self.pos.shape[1])

    @property
    def sizes(self) -> Tensor | None:
        """How many tokens each slot counts as in attention, float32 (1 or B, n); None: all alike.

        With `proportional`, the tokens it holds: proportional attention (ToMe, arXiv 2210.09461, section 3).
        """
        import torch

        if not self.proportional:
            return None
        if self.equal:  # the same in every window of every image
            held = torch.ones(1, self.kept, device=self.pos.device)
            held[:, self.kept - self.groups :] += self.sources.shape[1] / self.groups
            return held
        slots = torch.arange(self.kept, device=self.pos.device)
        return (self.slot.unsqueeze(1) == slots[None, :, None]).sum(-1).float()

    def merge(self, x: Tensor) -> Tensor:
        """Reduce tokens (B, N, D) to slots (B, n, D)."""
        import torch

        if self.reduce == "replace":
            return rows(x, self.pos)
        first = self.kept - self.groups
        single, into = rows(x, self.pos[:, :first]), self.pos[:, first:]
        if self.equal:
            if self.group_members is not None:
                members = self.group_members[into]
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
        empty = {window * n + slot for window in range(B) for slot in self.pads[window % len(self.pads)]}
        real = [slot for slot in range(B * n) if slot not in empty]
        row = dict(zip(real, range(len(real))))
        y = compute(self.merge(x).flatten(0, 1).index_select(0, torch.tensor(real, device=x.device)))
        table = torch.tensor([row.get(slot, 0) for slot in range(B * n)], device=x.device)
        first = torch.arange(B, device=x.device).unsqueeze(1) * n
        return y[table[self.slot + first]]

    def destination(self) -> Tensor:
        """The original index each token was merged into, (B, N): the decision, whatever the slots' order."""
        return self.pos.gather(1, self.slot)

    @staticmethod
    def assignment(parts: Mapping[str, np.ndarray], tokens: int) -> np.ndarray:
        """The destination of every token, (windows, N) int64; `tokens` is not read."""
        import numpy as np

        return np.take_along_axis(parts["pos"], parts["slot"], axis=1)

    def token_groups(self, grid: WindowGrid) -> np.ndarray:
        """Tokens that share a slot have one number, int64 (H, W)."""
        return groups_of_windows(self, grid)


@dataclass(frozen=True)
class SplitPlan:
    """Some windows of an image stay dense, the others merge by a plan of their own.

    Args:
        order: (B, W) int64, the W windows of an image, dense ones first.
        dense: windows that stay dense, the same number for every image.
        merged: plan of the other windows, (B * (W - dense), ...) in that order.
    """

    order: Tensor
    dense: int
    merged: MergePlan

    PARTS: ClassVar[tuple[str, ...]] = ("order", "pos", "slot", "sources")
    AT_ONCE: ClassVar[bool] = True

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
        """`compute` on all slots of every window."""
        return self.through(x, lambda slots, _: compute(slots))

    @property
    def sizes(self) -> Tensor | None:
        """`MergePlan.sizes` of the windows that merge."""
        return self.merged.sizes

    def through(self, x: Tensor, compute: Callable[[Tensor, Tensor | None], Tensor]) -> Tensor:
        """compute(tokens, None) on the dense windows of x (B * W, N, D), and as `MergePlan.through` on the others."""
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

    @staticmethod
    def assignment(parts: Mapping[str, np.ndarray], tokens: int) -> np.ndarray:
        """The destination of every token, (windows, N) int64, windows in their own order; `tokens` is not read."""
        return on_all_windows(MergePlan.assignment(parts, tokens), parts["order"])

    def token_groups(self, grid: WindowGrid) -> np.ndarray:
        """Tokens that share a slot have one number, int64 (H, W)."""
        return groups_of_windows(self, grid)


def on_all_windows(destination: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Destinations in the merging windows (B * M, N), put at their places among all W windows: (B * W, N)."""
    import numpy as np

    (B, W), N = order.shape, destination.shape[1]
    merging = len(destination) // B
    everything = np.tile(np.arange(N), (B, W, 1))
    for image, windows in enumerate(order):
        everything[image, windows[W - merging :]] = destination[image * merging : (image + 1) * merging]
    return everything.reshape(B * W, N)


def groups_of_windows(plan: MergePlan | SplitPlan, grid: WindowGrid) -> np.ndarray:
    """A number for every token of the first image, int64 (H, W): equal where tokens of one window share a slot."""
    import numpy as np
    import torch

    parts = {part: np.asarray(getattr(plan, part)) for part in plan.PARTS}
    destination = torch.from_numpy(plan.assignment(parts, grid.real_tokens))
    destination = destination + torch.arange(len(destination)).unsqueeze(1) * grid.tokens
    return np.asarray(grid.unpartition(destination.unsqueeze(-1))[0, ..., 0])


def groups_of_chosen(chosen: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A number for every token, int64 (H, W): `chosen` ones (k,) have their own, others share one in each 2x2 cell."""
    import numpy as np

    H, W = shape
    token = np.arange(H * W)
    cell = H * W + token // W // 2 * W + token % W // 2
    return np.where(np.isin(token, chosen), token, cell).reshape(H, W)
