"""GradToMe: the flattest token of each 2x2 cell is a destination (S. Xie's thesis, precursor of StructSAM).

Ours unless `compat` is "thesis": the correct Sobel kernel, the gradient taken over the whole grid with a replicate
border, pads merge first. Independent implementation; not verified against the author's code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from structsam_export.methods.base import MergeMethod
from structsam_export.methods.cells import cell_indices, mergeable_sources, partition_by_cell
from structsam_export.methods.energy import gradient_energy
from structsam_export.methods.matching import alternate_plan, alternating, match

if TYPE_CHECKING:
    from structsam_export.methods.plan import MergePlan
    from structsam_export.tokens import Tokens, WindowGrid


@dataclass(frozen=True)
class GradToMe(MergeMethod):
    """Energy = gradient magnitude: high = structure.

    "grid2x2": the token of lowest energy of each cell is a destination, the most similar other tokens merge into any
    of them. "alternate": PiToMe's rule with low gradients first. `gradient` is "sobel" or "central".
    """

    variant: str = "grid2x2"
    gradient: str = "sobel"

    NAME: ClassVar[str] = "gradtome"
    VARIANTS: ClassVar[dict[str, float]] = {"grid2x2": 0.75, "alternate": 0.5}
    PARAMS: ClassVar[dict[str, tuple[float, float] | tuple[str, ...]]] = {"gradient": ("sobel", "central")}
    FP32_VARIANTS: ClassVar[tuple[str, ...]] = ("alternate",)
    PROTECTS: ClassVar[str] = "the flattest token of each cell; alternate: the steepest tokens"
    SOURCE: ClassVar[str] = "GradToMe, master thesis of S. Xie"

    def removed(self, grid: WindowGrid) -> int:
        """floor(N * rate), at most half (alternate) or the sources of all cells (grid2x2)."""
        if self.variant == "alternate":
            return min(self.budget(grid), alternating(grid, bool(self.compat)))
        if self.compat:
            return min(self.budget(grid), grid.tokens - len(cell_indices(grid.window_shape)[0]))
        return min(self.budget(grid), mergeable_sources(grid))

    def plan(self, tokens: Tokens) -> MergePlan:
        """Plan for all windows of a block; B of the plan = images x windows."""
        grid, plain = tokens.grid, bool(self.compat)
        metric = grid.partition(tokens.features.float())
        energy = gradient_energy(tokens.features, grid, self.gradient, thesis=plain)
        if self.variant == "alternate":
            return alternate_plan(metric, -energy, self.removed(grid), grid, plain)
        src, dst = partition_by_cell(energy, grid, plain)
        return match(metric, src, dst, self.removed(grid), grid, plain=plain)

    def macs(self, grid: WindowGrid, head_dim: int) -> int:
        """Two 3x3 kernels a channel (sobel; in windows, pads included, as published) and the similarities."""
        sobel = 18 * grid.windows * grid.tokens * head_dim if self.gradient == "sobel" else 0
        cells = len(cell_indices(grid.window_shape)[0])
        pairs = self.removed(grid) ** 2 if self.variant == "alternate" else (grid.tokens - cells) * cells
        return sobel + grid.windows * pairs * head_dim
