"""The sizes of an image encoder, whatever model family it belongs to."""

from __future__ import annotations

from dataclasses import MISSING, asdict, dataclass, fields
from typing import Any

from structsam_export.tokens import WindowGrid


@dataclass(frozen=True)
class EncoderGeometry:
    """Shapes of an image encoder; `Host.geometry` reads them from the module itself.

    Args:
        image_size: side of the square input in pixels.
        patch_size: side of one token in pixels.
        grid: tokens (H, W) of one image.
        dim: channels of a token.
        depth: number of blocks.
        heads: attention heads of a block.
        mlp_dim: hidden channels of a block's MLP.
        out_channels: channels of the image embedding.
        windows: per block, the side of its square attention windows in tokens; 0 means global attention.
        other_macs: multiply-accumulates of all that is no block; None: of SAM's patch embedding and neck.
        prefix: tokens that come before the grid's in every block and never merge: class token and registers.
        positions: whether attention adds relative positions to its scores, which costs multiply-accumulates.
    """

    image_size: int
    patch_size: int
    grid: tuple[int, int]
    dim: int
    depth: int
    heads: int
    mlp_dim: int
    out_channels: int
    windows: tuple[int, ...]
    other_macs: int | None = None
    prefix: int = 0
    positions: bool = True

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.dim // self.heads

    @property
    def tokens_global(self) -> int:
        """Tokens of one image, H * W."""
        return self.grid[0] * self.grid[1]

    @property
    def global_layers(self) -> tuple[int, ...]:
        """Indices of the blocks that attend over the whole grid."""
        return tuple(i for i, window in enumerate(self.windows) if window == 0)

    def window_grid(self, layer: int) -> WindowGrid:
        """How block `layer` cuts the token grid into windows."""
        return WindowGrid(self.grid, self.windows[layer])

    @property
    def windowed_grid(self) -> WindowGrid:
        """How the windowed blocks cut the token grid; the whole grid if there are none."""
        return WindowGrid(self.grid, max(self.windows, default=0))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them (tuples become lists), but for those that have their defaults."""
        usual = {f.name: f.default for f in fields(self) if f.default is not MISSING}
        values = {k: v for k, v in asdict(self).items() if k not in usual or v != usual[k]}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> EncoderGeometry:
        """Inverse of `to_dict`."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)


def sam_geometry(dim: int, depth: int, heads: int, global_layers: tuple[int, ...]) -> EncoderGeometry:
    """SAM's encoder at 1024 pixels, of one size."""
    windows = tuple(0 if i in global_layers else 14 for i in range(depth))
    return EncoderGeometry(1024, 16, (64, 64), dim, depth, heads, 4 * dim, 256, windows)


# For what can be said of a model without its weights.
GEOMETRIES = {
    "vit_b": sam_geometry(768, 12, 12, (2, 5, 8, 11)),
    "vit_l": sam_geometry(1024, 24, 16, (5, 11, 17, 23)),
    "vit_h": sam_geometry(1280, 32, 16, (7, 15, 23, 31)),
}
