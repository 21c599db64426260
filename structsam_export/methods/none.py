"""No merging: the dense model, and what every other method is compared with."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.methods.base import Method

if TYPE_CHECKING:
    from structsam_export.geometry import EncoderGeometry
    from structsam_export.roles import Role


@dataclass(frozen=True)
class NoMerge(Method):
    """Keeps every token (rate 0)."""

    rate: float = 0.0
    variant: str = "dense"

    NAME: ClassVar[str] = "none"
    VARIANTS: ClassVar[dict[str, float]] = {"dense": 0.0}
    PROTECTS: ClassVar[str] = "everything"
    SOURCE: ClassVar[str] = "Segment Anything, arXiv 2304.02643"

    def role(self, index: int, geometry: EncoderGeometry, blocks: Mapping[int, Any]) -> Role | None:
        """Every block stays stock."""
        return None
