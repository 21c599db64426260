"""ToMe: every second token joins its most similar neighbour-column token (Token Merging, arXiv 2210.09461).

Inside SAM as in the precursor thesis: merge before attention, unmerge after it, plain mean, features of norm1(x)
averaged over heads. Independent implementation from the formulas; not verified against the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from structsam_export.methods.base import MergeMethod
from structsam_export.methods.matching import fixed_partition, match, mergeable

if TYPE_CHECKING:
    from structsam_export.methods.plan import MergePlan
    from structsam_export.tokens import Tokens, WindowGrid


@dataclass(frozen=True)
class ToMe(MergeMethod):
    """Even tokens are sources, odd tokens destinations: alternate columns where the side is even."""

    variant: str = "alternate"

    NAME: ClassVar[str] = "tome"
    VARIANTS: ClassVar[dict[str, float]] = {"alternate": 0.5}
    PROTECTS: ClassVar[str] = "nothing; every second column always stays"
    SOURCE: ClassVar[str] = "ToMe, arXiv 2210.09461"

    def destinations(self, grid: WindowGrid) -> tuple[int, ...]:
        """Odd tokens of one window."""
        return tuple(range(1, grid.tokens, 2))

    def removed(self, grid: WindowGrid) -> int:
        """floor(N * rate), at most the sources."""
        if self.compat:
            return min(self.budget(grid), grid.tokens - len(self.destinations(grid)))
        return min(self.budget(grid), mergeable(grid, self.destinations(grid)))

    def plan(self, tokens: Tokens) -> MergePlan:
        """Plan for all windows of a block; B of the plan = images x windows."""
        grid = tokens.grid
        metric = grid.partition(tokens.features.float())
        src, dst = fixed_partition(grid, self.destinations(grid), metric.device)
        return match(metric, src, dst, self.removed(grid), grid, plain=bool(self.compat))

    def macs(self, grid: WindowGrid, head_dim: int) -> int:
        """One similarity for every pair of source and destination."""
        dst = len(self.destinations(grid))
        return grid.windows * (grid.tokens - dst) * dst * head_dim
