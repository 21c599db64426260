"""What prompts a model takes, where it is less than SAM does; without NumPy, as hosts are listed without it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from structsam_export.errors import PromptError

if TYPE_CHECKING:
    import numpy as np


@dataclass(frozen=True)
class PromptLimits:
    """What prompts a model takes, where it is less than SAM does.

    Args:
        points: of one prompt at most, corners of a box included.
        masks: whether a mask of an earlier call may be a prompt.
    """

    points: int
    masks: bool

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return {"points": self.points, "masks": self.masks}

    def check(self, labels: np.ndarray, masks: np.ndarray | None) -> None:
        """Refuse prompts of labels (P, K) that the decoder would cut or leave unread.

        Raises:
            PromptError: more points, or a mask where none is read.
        """
        if (labels[:, self.points :] >= 0).any():
            raise PromptError(
                f"This model takes up to {self.points} points a prompt, a box being two of them, not "
                f"{int((labels >= 0).sum(1).max())}. Use fewer."
            )
        if masks is not None and not self.masks:
            raise PromptError("This model takes no mask as a prompt. Pass points or a box without mask_input.")
