"""The bundled demo model: SAM's own architecture, small enough to ship.

512 px, a 32x32 token grid, 8 blocks of width 192 with 3 heads, global attention in blocks 2, 5 and 7 and
12x12 windows elsewhere (32 -> 36, so its windows carry pads as SAM's 64 -> 70 do). Prompt encoder and mask
decoder have SAM's shapes. 8.7 M parameters; weights by `scripts/demo_model`.

At 1024 px, the size that most programs for SAM assume, it is the same weights on a 64x64 grid, their positions
interpolated (`positions.fitted`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from structsam_export.geometry import EncoderGeometry
from structsam_export.models.architecture import Architecture, build

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

IMAGE_SIZE = 512
PATCH_SIZE = 16
EMBED_DIM = 256


def demo_architecture(image_size: int = IMAGE_SIZE) -> Architecture:
    """The demo model's sizes for square images of `image_size` px."""
    grid = image_size // PATCH_SIZE
    return Architecture(
        EncoderGeometry(
            image_size=image_size,
            patch_size=PATCH_SIZE,
            grid=(grid, grid),
            dim=192,
            depth=8,
            heads=3,
            mlp_dim=768,
            out_channels=EMBED_DIM,
            windows=(12, 12, 0, 12, 12, 0, 12, 0),
        )
    )


def build_demo() -> Sam:
    """Build the demo model with random weights (a `segment_anything` `Sam`)."""
    return build(demo_architecture())


def build_demo_1024() -> Sam:
    """Build it for images of 1024 px."""
    return build(demo_architecture(1024))
