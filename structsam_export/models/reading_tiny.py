"""Reading the sizes of a TinyViT from weights; as in `reading`, nothing looks at values and every size is checked."""

from __future__ import annotations

import re
from collections.abc import Mapping
from math import isqrt
from typing import TYPE_CHECKING

from structsam_export.models.shapes import Unreadable, count, shape
from structsam_export.stages import TinyStages

if TYPE_CHECKING:
    from torch import Tensor

ENCODER = "image_encoder."
STEM = f"{ENCODER}patch_embed.seq.0.c.weight"
STAGES = 4
# Weights of convolutions and windows do not say how large the image is. Every published one has this embedding.
GRID = 64


def read_stages(state: Mapping[str, Tensor]) -> tuple[TinyStages, int, int]:
    """Stages, side of the image in pixels, and channels of the embedding.

    Raises:
        Unreadable: shapes that do not say it, or that contradict each other.
    """
    _, channels, stem, other = shape(state, STEM, 4)
    if channels != 3 or stem != other or stem not in (1, 3):
        raise Unreadable(f"first convolutions of {stem} x {other} over {channels} channels are no TinyViT's of SAM")
    if (found := count(state, r"image_encoder\.layers\.(\d+)\.")) != STAGES:
        raise Unreadable(f"{found} stages where the TinyViT of MobileSAM has {STAGES}")
    dims = [shape(state, f"{ENCODER}patch_embed.seq.2.c.weight", 4)[0]]
    heads, windows = [0], [0]
    for stage in range(1, STAGES):
        block = f"{ENCODER}layers.{stage}.blocks.0.attn."
        dims.append(shape(state, f"{block}proj.weight", 2)[0])
        number, offsets = shape(state, f"{block}attention_biases", 2)
        heads.append(number)
        windows.append(isqrt(offsets))
        if windows[-1] ** 2 != offsets or dims[-1] % number:
            raise Unreadable(f"{offsets} distances and {number} heads of {dims[-1]} channels in stage {stage}")
    depths = tuple(count(state, rf"image_encoder\.layers\.{i}\.blocks\.(\d+)\.") for i in range(STAGES))
    stages = TinyStages(stem, tuple(dims), depths, tuple(heads), tuple(windows))
    return stages, GRID * stages.patch_size, shape(state, f"{ENCODER}neck.0.weight", 4)[0]


def is_tiny(names: Mapping[str, object]) -> bool:
    """Whether weights of these names have a TinyViT."""
    return STEM in names or any(re.match(r"image_encoder\.layers\.\d+\.", name) for name in names)
