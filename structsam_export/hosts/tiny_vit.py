"""Host: TinyViT encoders (MobileSAM, LiteMedSAM), SAM's prompt encoder and mask decoder behind them.

No method runs in them. Methods are defined on one residual stream of tokens on one grid, with attention and MLP of
every token; here a 3x3 convolution lies between the two in every block, grids and widths change from stage to stage,
and windows are of 49 tokens but for one stage. What merging could shorten is small, too: `refusal` says how much.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.hosts.base import unlike
from structsam_export.hosts.segment_anything import SegmentAnything
from structsam_export.stages import TinyStages

if TYPE_CHECKING:
    from torch import nn

    from structsam_export.geometry import EncoderGeometry
    from structsam_export.views import BlockView


class TinyViT(SegmentAnything):
    """`Sam` with a `TinyViT`, ours or that of MobileSAM's and LiteMedSAM's own packages."""

    ENCODER: ClassVar[str] = "TinyViT"

    def geometry(self, encoder: nn.Module) -> EncoderGeometry:
        """Sizes of an encoder; its blocks are no part of them, as nothing can change them.

        Raises:
            UsageError: another project's class of this name.
        """
        try:
            return read_stages(encoder).geometry(int(encoder.img_size), int(encoder.neck[0].out_channels))
        except (AttributeError, IndexError, TypeError) as error:
            raise unlike(encoder, TinyViT, error) from error

    def blocks(self, encoder: Any) -> Sequence[BlockView]:
        """None: no method runs in them."""
        return []

    def refusal(self, method: str) -> str | None:
        """The same reason for all methods."""
        return (
            "TinyViT has a convolution between attention and MLP of every block and grids that change from stage to "
            "stage; methods are defined on blocks of attention and MLP over one grid. Scores and weighted values in "
            "its windows, which merging would shorten most, are 7 % of LiteMedSAM's MACs. Pass --method none."
        )


def read_stages(encoder: Any) -> TinyStages:
    """Stages of a module; AttributeError or IndexError if it has other parts."""
    convolutions, *attending = encoder.layers
    return TinyStages(
        stem=int(encoder.patch_embed.seq[0].c.kernel_size[0]),
        dims=(
            int(encoder.patch_embed.seq[2].c.out_channels),
            *(int(stage.blocks[0].attn.norm.normalized_shape[0]) for stage in attending),
        ),
        depths=tuple(len(stage.blocks) for stage in (convolutions, *attending)),
        heads=(0, *(int(stage.blocks[0].attn.num_heads) for stage in attending)),
        windows=(0, *(int(stage.blocks[0].window_size) for stage in attending)),
    )
