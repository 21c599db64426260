"""What a source of weights must implement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.models.reading import Stated


class Source(Protocol):
    """A library that stores a SAM. Instances hold nothing."""

    # The key in `SOURCES`.
    NAME: ClassVar[str]
    # A tensor that all its weights have, and none of a source below it in `SOURCES`.
    ANCHOR: ClassVar[str]

    def renamed(self, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """Tensors by the names that `segment_anything`'s modules give them; names it does not know stay.

        Raises:
            CheckpointError: two tensors of one meaning that differ.
        """
        ...

    def stated(self, folder: Path) -> Stated:
        """What the files beside the weights say that weights do not.

        Raises:
            CheckpointError: a file cannot be read, or describes what is not supported.
        """
        ...
