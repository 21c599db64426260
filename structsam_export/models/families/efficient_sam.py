"""Family: EfficientSAM (arXiv 2312.00863) of ViT-Ti and ViT-S."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.geometry import EncoderGeometry
from structsam_export.models.architecture import Architecture, DecoderGeometry, build_encoder, build_with
from structsam_export.models.reading import POSITIONS, Stated, read_architecture
from structsam_export.models.shapes import DEEPEST
from structsam_export.models.sources.efficient_sam import ANCHOR

if TYPE_CHECKING:
    from torch import Tensor

IMAGE, HEAD_DIM = 1024, 64  # what weights do not say, and both published ones have


class EfficientSam:
    """`segment_anything`'s `Sam` with the parts of `models.efficient_sam`."""

    NAME: ClassVar[str] = "efficient-sam"
    TITLE: ClassVar[str] = "EfficientSAM"

    def knows(self, names: frozenset[str]) -> bool:
        """By the embedding of missing points."""
        return ANCHOR in names

    def read(self, state: Mapping[str, Tensor], stated: Stated, path: Path) -> Architecture:
        """Sizes by shapes, but for the image, whose positions are interpolated from the 224 px of pre-training."""
        positions = state.get(POSITIONS)
        width = positions.shape[-1] if positions is not None and positions.ndim else HEAD_DIM
        heads, blocks = max(1, width // HEAD_DIM), tuple(range(DEEPEST))
        found = read_architecture(
            state, replace(stated, heads=heads, window=0, global_layers=blocks, masks=False), path
        )
        side = IMAGE // found.encoder.patch_size
        encoder = replace(found.encoder, image_size=side * found.encoder.patch_size, grid=(side, side))
        return replace(found, encoder=encoder, family=self.NAME)

    def preprocessing(self, architecture: Architecture) -> str:
        """Its own."""
        return "efficientsam"

    def build(self, architecture: Architecture) -> Any:
        """A `Sam` whose encoder is an `EfficientSamViT`."""
        from segment_anything.modeling import Sam

        from structsam_export.models import efficient_sam as parts

        return build_with(
            architecture,
            encoder=build_encoder(architecture, parts.EfficientSamViT),
            prompts=lambda channels, grid, image, _: parts.PointEncoder(channels, grid, image),
            transformer=parts.TwoWay,
            decoder=parts.EfficientDecoder,
            whole=Sam,
        )


def build_size(dim: int) -> Any:
    """A published size, of random weights."""
    encoder = EncoderGeometry(IMAGE, 16, (64, 64), dim, 12, dim // HEAD_DIM, 4 * dim, 256, (0,) * 12)
    decoder = DecoderGeometry(mask_channels=0)
    return EfficientSam().build(Architecture(encoder, decoder, positions=False, family=EfficientSam.NAME))


def build_ti() -> Any:
    """EfficientSAM-Ti."""
    return build_size(192)


def build_s() -> Any:
    """EfficientSAM-S."""
    return build_size(384)
