"""Family: Segment Anything, and all that are built of its modules (MedSAM, pruned ones, most fine-tunes)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.models.architecture import build
from structsam_export.models.families import SAM
from structsam_export.models.reading import read_architecture

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.models.architecture import Architecture
    from structsam_export.models.reading import Stated


class SamFamily:
    """`segment_anything`'s `Sam`."""

    NAME: ClassVar[str] = SAM
    TITLE: ClassVar[str] = "SAM"

    def knows(self, names: frozenset[str]) -> bool:
        """Always: what does not fit is refused with reasons."""
        return True

    def read(self, state: Mapping[str, Tensor], stated: Stated, path: Path) -> Architecture:
        """See `models.reading`."""
        return read_architecture(state, stated, path)

    def preprocessing(self, architecture: Architecture) -> str:
        """SAM's, and LiteMedSAM's own."""
        return "litemedsam" if architecture.stages is not None and architecture.stages.medsam else "sam"

    def build(self, architecture: Architecture) -> Any:
        """A `Sam`."""
        return build(architecture)
