"""No merging: the dense model, and what every other method is compared with."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from structsam_export.methods.base import MergeMethod

if TYPE_CHECKING:
    from structsam_export.methods.plan import MergePlan
    from structsam_export.methods.tokens import Layout, Tokens


@dataclass(frozen=True)
class NoMerge(MergeMethod):
    """Keeps every token (rate 0)."""

    rate: float = 0.0
    variant: str = "dense"

    KIND: ClassVar[str] = "none"
    NAME: ClassVar[str] = "none"
    VARIANTS: ClassVar[dict[str, float]] = {"dense": 0.0}
    COMPAT: ClassVar[tuple[str, ...]] = ()
    PROTECTS: ClassVar[str] = "everything"
    SOURCE: ClassVar[str] = "Segment Anything, arXiv 2304.02643"

    def removed(self, layout: Layout) -> int:
        """Tokens removed in one attention call: none."""
        return 0

    def plan(self, tokens: Tokens) -> MergePlan:
        """Never called: a method that removes nothing leaves the block as it is."""
        raise AssertionError("the dense model has no plan")

    def macs(self, layout: Layout, head_dim: int) -> int:
        """MACs of scoring and matching in one block, batch 1: none."""
        return 0
