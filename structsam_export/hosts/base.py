"""What a host must implement, and the what it hands over to export a decoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

from structsam_export.errors import UsageError

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from structsam_export.geometry import EncoderGeometry
    from structsam_export.runtime.features import Features
    from structsam_export.runtime.limits import PromptLimits
    from structsam_export.views import BlockView

# (features: the embedding (1, C, h, w) or several tensors by name, coords (P, 2, 2), labels (P, 2))
# -> low-resolution logits (P, 4h, 4w), all float32 but labels
Decode = Callable[["Features", "np.ndarray", "np.ndarray"], "np.ndarray"]


@dataclass(frozen=True)
class DecoderExport:
    """A decoder as a module of tensors only, and what it is traced with.

    Args:
        module: takes `inputs` in order.
        inputs: example tensors by name, all sizes above 1 where they are dynamic.
        dynamic_shapes: by input, the dynamic axes as `torch.export` takes them, or None.
        outputs: names of what it returns.
    """

    module: nn.Module
    inputs: Mapping[str, Tensor]
    dynamic_shapes: Mapping[str, Any]
    outputs: tuple[str, ...]


class Host(Protocol):
    """A model family. Instances hold nothing; everything is asked of the modules handed in."""

    # Class name of the encoder, the key in `HOSTS`.
    ENCODER: ClassVar[str]
    # Names that an exported encoder's input and outputs get, in the order of `encoder(image)`.
    ENCODER_INPUT: ClassVar[str]
    ENCODER_OUTPUTS: ClassVar[tuple[str, ...]]
    # What prompts may be; None: any number of points, and masks of earlier calls.
    PROMPTS: ClassVar[PromptLimits | None]
    # Whether there is a decoder that draws masks. Others give features: their exports are of an encoder alone, and are
    # judged by it.
    MASKS: ClassVar[bool]

    def geometry(self, encoder: nn.Module) -> EncoderGeometry:
        """Sizes of an encoder.

        Raises:
            UsageError: the module has the name of this host's encoder but not its parts.
        """
        ...

    def blocks(self, encoder: nn.Module) -> Sequence[BlockView]:
        """The encoder's blocks, in order; none where no method can run."""
        ...

    def refusal(self, method: str) -> str | None:
        """Why a method of that name cannot run in this family's encoders, and what to do; None if it can.

        Asked for every method that changes blocks, never for the one that keeps all tokens.
        """
        ...

    def decoder(self, model: Any) -> Decode:
        """The model's own decoding in eager PyTorch, to compare exported decoders with."""
        ...

    def decoder_for_export(self, model: Any) -> DecoderExport:
        """Prompt encoder and mask decoder as one module with the contract of `trace.py`."""
        ...


def unlike(encoder: Any, host: type[Host], error: Exception) -> UsageError:
    """The error for a module that has the class name of a host's encoder but not its parts."""
    kind = type(encoder)
    module = host.__module__.rpartition(".")[2]
    return UsageError(
        f"Unsupported encoder {kind.__module__}.{kind.__qualname__}: it has the name of {module}'s "
        f"{host.ENCODER} but not its layout ({error})."
    )
