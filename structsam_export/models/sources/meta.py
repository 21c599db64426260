"""Source: Meta's `segment_anything`, and all that train with it (MedSAM and most fine-tunes)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from structsam_export.models.reading import Stated
from structsam_export.models.unwrap import PATCH_EMBED

if TYPE_CHECKING:
    from torch import Tensor


class Meta:
    """Names are the modules' own; nothing lies beside the weights."""

    NAME: ClassVar[str] = "meta"
    ANCHOR: ClassVar[str] = PATCH_EMBED

    def renamed(self, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """The tensors as they are."""
        return dict(state)

    def stated(self, folder: Path) -> Stated:
        """SAM's own values."""
        return Stated()
