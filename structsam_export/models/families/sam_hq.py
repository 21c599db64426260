"""Family: SAM-HQ (arXiv 2306.01567) of ViT-B, L and H, by the package `segment-anything-hq`.

SAM's encoder, prompt encoder and transformer, all frozen, with one more output token and three small stacks of
convolutions: they fuse the tokens after the first global block ("early") with the image embedding ("final") into
features of four times its side, on which the token's mask is drawn.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.errors import MissingRuntimeError
from structsam_export.models.architecture import Architecture, build_encoder, build_with
from structsam_export.models.reading import read_architecture

if TYPE_CHECKING:
    from torch import Tensor, nn

    from structsam_export.models.reading import Stated

TOKEN = "mask_decoder.hf_token.weight"
VIT = "image_encoder.pos_embed"  # not in Light HQ-SAM, whose encoder is a TinyViT


class SamHQ:
    """`segment_anything_hq`'s `Sam` with a `MaskDecoderHQ`."""

    NAME: ClassVar[str] = "sam-hq"
    TITLE: ClassVar[str] = "SAM-HQ"

    def knows(self, names: frozenset[str]) -> bool:
        """By the token that SAM has not, beside a ViT."""
        return {TOKEN, VIT} <= names

    def read(self, state: Mapping[str, Tensor], stated: Stated, path: Path) -> Architecture:
        """As SAM's: what is added has no sizes of its own."""
        return replace(read_architecture(state, stated, path), family=self.NAME)

    def preprocessing(self, architecture: Architecture) -> str:
        """SAM's."""
        return "sam"

    def build(self, architecture: Architecture) -> Any:
        """The package's `Sam`, whose encoder is an `HQImageEncoder`.

        Raises:
            MissingRuntimeError: the package is not installed.
        """
        modeling = package()
        width = architecture.encoder.dim

        def decoder(**sizes: Any) -> Any:
            return modeling.MaskDecoderHQ(**sizes, vit_dim=width)

        return build_with(
            architecture,
            encoder=build_encoder(architecture, encoder_class()),
            prompts=modeling.PromptEncoder,
            transformer=modeling.TwoWayTransformer,
            decoder=decoder,
            whole=modeling.Sam,
        )


def package() -> Any:
    """`segment_anything_hq.modeling`.

    Raises:
        MissingRuntimeError: it is not installed, or not what it needs.
    """
    try:
        import segment_anything_hq.modeling as modeling
    except ImportError as error:
        raise MissingRuntimeError(
            f"SAM-HQ needs the package segment-anything-hq and timm ({error}). Run: pip install 'structsam-export[hq]'."
        ) from error
    return modeling


@cache
def encoder_class() -> type[nn.Module]:
    """`HQImageEncoder`: the package's encoder, which hands out the early tokens alone.

    The package returns the tokens after every global block, of which its decoder reads the first.
    """
    from structsam_export.patch import whole_grid

    class HQImageEncoder(package().ImageEncoderViT):  # type: ignore[misc]
        """Image (B, 3, S, S) -> embedding (B, C, h, w), and tokens after the first global block (B, h, w, D)."""

        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            embedding, (early, *_) = super().forward(x)
            return embedding, whole_grid(self, early)

    return HQImageEncoder


def build_size(dim: int, depth: int, heads: int, global_layers: tuple[int, ...]) -> Any:
    """A published size, at 1024 pixels."""
    from structsam_export.geometry import sam_geometry

    return SamHQ().build(Architecture(sam_geometry(dim, depth, heads, global_layers), family=SamHQ.NAME))


def build_vit_b() -> Any:
    """SAM-HQ ViT-B."""
    return build_size(768, 12, 12, (2, 5, 8, 11))


def build_vit_l() -> Any:
    """SAM-HQ ViT-L."""
    return build_size(1024, 24, 16, (5, 11, 17, 23))


def build_vit_h() -> Any:
    """SAM-HQ ViT-H."""
    return build_size(1280, 32, 16, (7, 15, 23, 31))
