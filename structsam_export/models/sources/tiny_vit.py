"""Source: checkpoints of MobileSAM and LiteMedSAM, whose encoder is a TinyViT."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from structsam_export.models.reading import Stated

if TYPE_CHECKING:
    from torch import Tensor

# What these files hold beside the weights of a mask: counters of training, the classifier that TinyViT was trained with
# (MobileSAM's file has it, its encoder does not use it), and tables that follow from the window.
UNUSED = re.compile(r"\.num_batches_tracked$|^image_encoder\.(norm_head|head)\.|\.attn\.(ab|attention_bias_idxs)$")


class TinyViT:
    """Names are the modules' own."""

    NAME: ClassVar[str] = "tiny_vit"
    ANCHOR: ClassVar[str] = "image_encoder.patch_embed.seq.0.c.weight"

    def renamed(self, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """The tensors that masks depend on."""
        return {name: tensor for name, tensor in state.items() if not UNUSED.search(name)}

    def stated(self, folder: Path) -> Stated:
        """SAM's own values."""
        return Stated()
