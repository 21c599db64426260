"""What all methods have in common, and what all that merge do in a block."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.methods.plan import MergePlan, SplitPlan
from structsam_export.roles import Role, WindowGroup
from structsam_export.tokens import Tokens

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.geometry import EncoderGeometry
    from structsam_export.roles import Step
    from structsam_export.tokens import WindowGrid

# The precursor thesis (S. Xie) and its code: pads are ordinary tokens, Sobel has a sign error.
THESIS = ("thesis",)


@dataclass(frozen=True)
class Method:
    """A method: a frozen value with its rate and variant, and the roles that blocks play under it.

    A new kind of method subclasses this and says what its blocks do (`role`), what it saves (`window_groups`, `macs`)
    and what reports say of it (`token_counts`). What depends on the image is a plan of its own class (`roles.Plan`).

    Class attributes: NAME; VARIANTS (variant -> largest rate, default first); COMPAT (published behaviour it can
    reproduce); PARAMS (parameters of its own with their limits, or the texts they may be); FP32_VARIANTS (variants
    whose decisions hang on each other: what FP16 rounds in one block changes those of all that follow); PROTECTS and
    SOURCE for people.
    """

    rate: float = 0.5
    variant: str = ""

    NAME: ClassVar[str]
    VARIANTS: ClassVar[dict[str, float]]
    COMPAT: ClassVar[tuple[str, ...]] = ()
    PARAMS: ClassVar[dict[str, tuple[float, float] | tuple[str, ...]]] = {}
    FP32_VARIANTS: ClassVar[tuple[str, ...]] = ()
    PROTECTS: ClassVar[str]
    SOURCE: ClassVar[str]

    def first_layer(self, depth: int) -> int:
        """The block it starts at, of `depth`, if nobody names the layers."""
        return 0

    def role(self, index: int, geometry: EncoderGeometry, blocks: Mapping[int, Any]) -> Role | None:
        """What a block does under this method; None if it stays stock.

        Args:
            index: the block; `blocks[index]` is this method.
            geometry: the encoder's sizes.
            blocks: methods of all blocks that have one.

        Raises:
            UsageError: the method cannot work on this encoder, or not with these blocks.
        """
        raise NotImplementedError

    def extend(self, roles: dict[int, Role], geometry: EncoderGeometry) -> dict[int, Role]:
        """All roles with what the method needs from other blocks; asked once, after every block has its role."""
        return roles

    def token_counts(self, grid: WindowGrid, stock: WindowGrid) -> dict[str, Any]:
        """What `report.json` says of a block that this method reduces.

        Args:
            grid: the block's windows under this method.
            stock: its windows without.

        Returns:
            At least `N` and `n`, tokens of one window before and after, and `effective_rate`, the share of tokens (or
            of keys, where tokens stay) that really goes.
        """
        raise NotImplementedError

    def window_groups(self, grid: WindowGrid) -> list[WindowGroup]:
        """Windows of one image by what they compute, as the method's paper counts them."""
        return [WindowGroup(grid.windows, grid.tokens, grid.tokens)]

    def macs(self, grid: WindowGrid, head_dim: int) -> int:
        """MACs of choosing in one block, batch 1, as the papers count them."""
        return 0


@dataclass(frozen=True)
class MergeMethod(Method):
    """Merges tokens around attention: a plan for all windows of each block.

    `rate` is the fraction of the N tokens of one window that is removed; `compat` "thesis" reproduces the published
    behaviour of the thesis' code where it differs from ours.
    """

    compat: str | None = None

    COMPAT: ClassVar[tuple[str, ...]] = THESIS

    def removed(self, grid: WindowGrid) -> int:
        """Tokens removed in one window; n = N - removed."""
        raise NotImplementedError

    def plan(self, tokens: Tokens) -> MergePlan | SplitPlan:
        """Plan for all windows of a block; B of the plan = images x windows."""
        raise NotImplementedError

    def dense_windows(self, grid: WindowGrid) -> int:
        """Windows of one image that stay dense; the plan is then a `SplitPlan`."""
        return 0

    def window_groups(self, grid: WindowGrid) -> list[WindowGroup]:
        """All windows merge alike."""
        n = grid.tokens - self.removed(grid)
        return [WindowGroup(grid.windows, n, n)]

    def budget(self, grid: WindowGrid) -> int:
        """floor(N * rate), safe against 0.7 * 10 = 6.999..."""
        return floor(grid.tokens * self.rate + 1e-9)

    def role(self, index: int, geometry: EncoderGeometry, blocks: Mapping[int, Any]) -> Role | None:
        """Attention over merged tokens, where any are removed."""
        grid = geometry.window_grid(index)
        if self.removed(grid) == 0:
            return None
        plan = SplitPlan if self.dense_windows(grid) else MergePlan
        return Role(index, grid, self, attend=self.attend, decisions=((f"plan.{index}", plan),))

    def attend(self, step: Step, y: Tensor) -> tuple[Tensor, MergePlan | SplitPlan]:
        """Attention of normalised tokens y (B, H, W, D) -> (B, H, W, D) over merged tokens, and the plan."""
        import torch

        grid = step.grid
        with torch.no_grad():
            features = step.features(y)
            inputs = (features,) if step.region is None else (features, step.region)
            plan: MergePlan | SplitPlan = step.decide(
                "plan", lambda x, *region: self.plan(Tokens(x, grid, *region)), *inputs
            )
        x = grid.partition(y)
        if isinstance(plan, MergePlan) and step.ranks:
            slots, keys = step.attend(plan.merge(x), plan.pos, plan.sizes)
            out = grid.unpartition(plan.unmerge(slots))
            # A merged token's key stands for every token it holds.
            spread = plan.unmerge(keys.transpose(1, 2).flatten(2)).unflatten(2, (keys.shape[1], -1)).transpose(1, 2)
            step.rank(spread)
            return out, plan

        def compute(tokens: Tensor, pos: Tensor | None) -> Tensor:
            return step.stock(tokens) if pos is None else step.attend(tokens, pos, plan.sizes)[0]

        return grid.unpartition(plan.through(x, compute)), plan

    def token_counts(self, grid: WindowGrid, stock: WindowGrid) -> dict[str, Any]:
        """`n` is that of windows that merge; `calls` lists all where some stay dense."""
        groups, N = self.window_groups(grid), stock.tokens
        row: dict[str, Any] = {"N": N, "n": groups[-1].queries}
        if len(groups) > 1:
            row["calls"] = [{"calls": group.windows, "n": group.queries} for group in groups]
        kept = sum(group.windows * group.queries for group in groups)
        return row | {"effective_rate": round(1 - kept / (grid.windows * N), 6)}
