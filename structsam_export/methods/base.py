"""What all methods share: a frozen value with its rate, variant and compatibility switch."""

from __future__ import annotations

from dataclasses import dataclass
from math import floor
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from structsam_export.methods.plan import MergePlan
    from structsam_export.methods.tokens import Layout, Tokens

# The precursor thesis (S. Xie) and its code: pads are ordinary tokens, Sobel has a sign error.
THESIS = ("thesis",)


@dataclass(frozen=True)
class MergeMethod:
    """Merges tokens around attention: a plan for every call of every layer.

    `rate` is the fraction of the N tokens of one attention call that is removed; `compat` "thesis" reproduces the
    published behaviour of the thesis' code where it differs from ours.
    """

    rate: float = 0.5
    variant: str = ""
    compat: str | None = None

    KIND: ClassVar[str] = "merge"
    NAME: ClassVar[str]
    VARIANTS: ClassVar[dict[str, float]]
    COMPAT: ClassVar[tuple[str, ...]] = THESIS
    PARAMS: ClassVar[dict[str, tuple[float, float] | tuple[str, ...]]] = {}
    # Variants whose decisions hang on each other: what FP16 rounds in one block changes roles in all that follow.
    FP32_VARIANTS: ClassVar[tuple[str, ...]] = ()
    PROTECTS: ClassVar[str]
    SOURCE: ClassVar[str]

    def removed(self, layout: Layout) -> int:
        """Tokens removed in one attention call; n = N - removed."""
        raise NotImplementedError

    def plan(self, tokens: Tokens) -> MergePlan:
        """Plan for every attention call of a layer; B of the plan = images x windows."""
        raise NotImplementedError

    def macs(self, layout: Layout, head_dim: int) -> int:
        """MACs of scoring and matching in one block, batch 1, as the papers count them."""
        raise NotImplementedError

    def dense_calls(self, layout: Layout) -> int:
        """Attention calls of one image that stay dense; the plan is then a `SplitPlan`."""
        return 0

    def groups(self, layout: Layout) -> list[tuple[int, int]]:
        """(attention calls, tokens n in each) of one image."""
        return [(layout.calls, layout.tokens - self.removed(layout))]

    def budget(self, layout: Layout) -> int:
        """floor(N * rate), safe against 0.7 * 10 = 6.999..."""
        return floor(layout.tokens * self.rate + 1e-9)
