"""PiToMe: tokens that resemble many others merge, rare ones are protected (PiToMe, arXiv 2405.16148).

Inside SAM as in the precursor thesis: merge before attention, features of norm1(x) averaged over heads, margin 0.
Pads come first and ties go by index (ours). Independent implementation from the formulas; not verified against the
authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from structsam_export.methods.base import MergeMethod
from structsam_export.methods.cells import cell_indices, mergeable_sources, partition_by_cell
from structsam_export.methods.energy import redundancy_energy
from structsam_export.methods.matching import alternate_plan, alternating, match, unit_features

if TYPE_CHECKING:
    from structsam_export.methods.plan import MergePlan
    from structsam_export.tokens import Tokens, WindowGrid


@dataclass(frozen=True)
class PiToMe(MergeMethod):
    """Energy E_i = mean_j ELU_alpha(cos(i, j) - margin): high = redundant.

    "alternate": the 2r tokens of highest energy are sources and destinations in turn. "grid": the token of highest
    energy of each 2x2 cell is a destination, all others sources (the thesis' PiToMe-v1).
    """

    variant: str = "alternate"
    margin: float = 0.0
    alpha: float = 1.0

    NAME: ClassVar[str] = "pitome"
    VARIANTS: ClassVar[dict[str, float]] = {"alternate": 0.5, "grid": 0.75}
    PARAMS: ClassVar[dict[str, tuple[float, float] | tuple[str, ...]]] = {"margin": (-1.0, 1.0), "alpha": (0.0, 10.0)}
    FP32_VARIANTS: ClassVar[tuple[str, ...]] = ("alternate",)
    PROTECTS: ClassVar[str] = "tokens unlike all others (below rate 0.5)"
    SOURCE: ClassVar[str] = "PiToMe, arXiv 2405.16148"

    def removed(self, grid: WindowGrid) -> int:
        """floor(N * rate), at most half (alternate) or the sources of all cells (grid)."""
        if self.variant == "alternate":
            return min(self.budget(grid), alternating(grid, bool(self.compat)))
        if self.compat:
            return min(self.budget(grid), grid.tokens - len(cell_indices(grid.window_shape)[0]))
        return min(self.budget(grid), mergeable_sources(grid))

    def plan(self, tokens: Tokens) -> MergePlan:
        """Plan for all windows of a block; B of the plan = images x windows."""
        grid, plain = tokens.grid, bool(self.compat)
        metric = grid.partition(tokens.features.float())
        energy = redundancy_energy(unit_features(metric), self.margin, self.alpha)
        if self.variant == "alternate":
            return alternate_plan(metric, energy, self.removed(grid), grid, plain)
        src, dst = partition_by_cell(-energy, grid, plain)
        return match(metric, src, dst, self.removed(grid), grid, plain=plain)

    def macs(self, grid: WindowGrid, head_dim: int) -> int:
        """All pairs for the energy; matching looks its similarities up there."""
        return grid.windows * grid.tokens**2 * head_dim
