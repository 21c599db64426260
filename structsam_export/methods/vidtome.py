"""VidToMe on one image: the four polyphase sub-grids stand in for video frames (VidToMe, arXiv 2312.10656).

Our adaptation ("VidToMe local stage, polyphase frames"): neighbouring phases are near-duplicates, which is what
VidToMe assumes about time. One phase, chosen by a seeded constant, is the frame that receives; tokens of the other
three are dropped into it without averaging. Its memory across chunks of a video has no meaning here. Independent
implementation; not verified against the authors' code.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

from structsam_export.methods.patterns import corners
from structsam_export.methods.tome import ToMe

if TYPE_CHECKING:
    from structsam_export.methods.plan import MergePlan
    from structsam_export.tokens import Tokens, WindowGrid


@dataclass(frozen=True)
class VidToMe(ToMe):
    """Matching as in ToMe with one phase as destinations; a destination keeps its own value ("replace")."""

    variant: str = "polyphase"
    seed: int = 42

    NAME: ClassVar[str] = "vidtome"
    VARIANTS: ClassVar[dict[str, float]] = {"polyphase": 0.75}
    PARAMS: ClassVar[dict[str, tuple[float, float] | tuple[str, ...]]] = {"seed": (0, 2**63)}
    PROTECTS: ClassVar[str] = "nothing; one of four phases always stays, unchanged"
    SOURCE: ClassVar[str] = "VidToMe, arXiv 2312.10656, adapted by us"

    def destinations(self, grid: WindowGrid) -> tuple[int, ...]:
        """All tokens of the chosen phase."""
        width, (phase,) = grid.window_shape[1], corners(self.seed, 1)
        return tuple(t for t in range(grid.tokens) if (t // width % 2, t % width % 2) == divmod(phase, 2))

    def plan(self, tokens: Tokens) -> MergePlan:
        """Plan for all windows of a block; B of the plan = images x windows."""
        return replace(super().plan(tokens), reduce="replace")
