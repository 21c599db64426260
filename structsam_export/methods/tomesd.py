"""ToMeSD: one destination in each 2x2 cell, or a random quarter of all tokens (Token Merging for Fast Stable
Diffusion, arXiv 2303.17604).

Patterns are seeded integer constants of our own (`patterns.py`): the same for every window, image and runtime, where
the published code draws them from PyTorch's generators. Independent implementation; not verified against the
authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from structsam_export.methods.cells import cell_indices
from structsam_export.methods.patterns import corners, subset
from structsam_export.methods.tome import ToMe

if TYPE_CHECKING:
    from structsam_export.tokens import WindowGrid


@dataclass(frozen=True)
class ToMeSD(ToMe):
    """Matching as in ToMe; `variant` chooses the destinations.

    "stride2x2" the top-left token of each cell, "rand2x2" a random token of each cell, "rand25" a random quarter of
    all tokens. `seed` draws the random patterns.
    """

    variant: str = "stride2x2"
    seed: int = 42

    NAME: ClassVar[str] = "tomesd"
    VARIANTS: ClassVar[dict[str, float]] = {"stride2x2": 0.75, "rand2x2": 0.75, "rand25": 0.75}
    PARAMS: ClassVar[dict[str, tuple[float, float] | tuple[str, ...]]] = {"seed": (0, 2**63)}
    PROTECTS: ClassVar[str] = "nothing; a fixed quarter of the tokens always stays"
    SOURCE: ClassVar[str] = "ToMeSD, arXiv 2303.17604"

    def destinations(self, grid: WindowGrid) -> tuple[int, ...]:
        """Destinations of one window, constants of its size."""
        if self.variant == "rand25":
            return subset(self.seed, grid.tokens, grid.tokens // 4)
        cells, _ = cell_indices(grid.window_shape)
        if self.variant == "stride2x2":
            return tuple(cell[0] for cell in cells)
        return tuple(cell[q] for cell, q in zip(cells, corners(self.seed, len(cells))))
