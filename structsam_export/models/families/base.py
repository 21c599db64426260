"""What a family of models must implement."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.models.architecture import Architecture
    from structsam_export.models.reading import Stated


class Family(Protocol):
    """A family of models. Instances hold nothing."""

    # The key in `FAMILIES`.
    NAME: ClassVar[str]
    # What titles call it.
    TITLE: ClassVar[str]

    def knows(self, names: frozenset[str]) -> bool:
        """Whether tensors of these names are this family's."""
        ...

    def read(self, state: Mapping[str, Tensor], stated: Stated, path: Path) -> Architecture:
        """The architecture that weights were trained in; `path` is for messages.

        Raises:
            CheckpointError: the weights do not say it.
        """
        ...

    def preprocessing(self, architecture: Architecture) -> str:
        """How photos become its input (`ModelSpec.preprocessing`), as far as weights say it."""
        ...

    def build(self, architecture: Architecture) -> Any:
        """The model with random weights (none at all on the meta device): children `image_encoder`,
        `prompt_encoder` and `mask_decoder`, buffers `pixel_mean` and `pixel_std`.

        Raises:
            MissingRuntimeError: its package is not installed.
        """
        ...
