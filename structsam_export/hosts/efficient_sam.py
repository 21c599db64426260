"""Host: EfficientSAM. Its blocks are SAM's, all of them global and without relative positions.

Positions are added once, before the first block, so that a merged token needs none: every method runs in every block.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.hosts.segment_anything import SegmentAnything, decoder_module
from structsam_export.runtime.limits import PromptLimits

if TYPE_CHECKING:
    from torch import Tensor, nn

    from structsam_export.hosts.base import DecoderExport


class EfficientSam(SegmentAnything):
    """`Sam` with an `EfficientSamViT` and the decoder of `models.efficient_sam`."""

    ENCODER: ClassVar[str] = "EfficientSamViT"
    PROMPTS: ClassVar[PromptLimits | None] = PromptLimits(points=6, masks=False)

    def decoder_for_export(self, model: Any) -> DecoderExport:
        """SAM's inputs, so that what runs SAM's decoders runs this one; the two about masks are not read.

        Of K points the first six are, corners of boxes included. Of the outputs, the first mask is that of the three
        others with the largest guess, see `models.efficient_sam.EfficientDecoder.best_first`.
        """
        return replace(super().decoder_for_export(model), module=efficient_decoder_module(model))


def efficient_decoder_module(sam: Any) -> nn.Module:
    """Prompt encoder and mask decoder as one module of tensors; see `EfficientSam.decoder_for_export`."""
    stock: Any = type(decoder_module(sam))

    class Decoder(stock):  # type: ignore[misc]
        def prompted(self, *inputs: Tensor) -> tuple[Tensor, Tensor]:
            image_embeddings, point_coords, point_labels, *_ = inputs
            tokens = self.prompt.embedded(point_coords, point_labels)
            return tokens, image_embeddings.expand(tokens.shape[0], -1, -1, -1)

        def drawn(self, hs: Tensor, up: Tensor) -> tuple[Tensor, Tensor]:
            made: tuple[Tensor, Tensor] = self.mask.best_first(*super().drawn(hs, up))
            return made

    return Decoder().eval()
