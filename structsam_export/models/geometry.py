"""The sizes of an image encoder, read from the module itself rather than from a table of names."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from structsam_export.errors import UsageError
from structsam_export.methods.tokens import Layout

HOST = "ImageEncoderViT"


@dataclass(frozen=True)
class EncoderGeometry:
    """Shapes of a SAM encoder.

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

    def layout(self, layer: int) -> Layout:
        """How block `layer` cuts the token grid into attention calls."""
        return Layout(self.grid, self.windows[layer])

    @property
    def windowed_layout(self) -> Layout:
        """The layout of the windowed blocks; the whole grid if there are none."""
        return Layout(self.grid, max(self.windows, default=0))

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them (tuples become lists)."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

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


def from_encoder(encoder: Any) -> EncoderGeometry:
    """Read the geometry of a `segment_anything` image encoder.

    The host is recognised by class name (subclasses too), so `segment_anything` need not be imported.

    Raises:
        UsageError: the module is no ImageEncoderViT, or is another project's class of that name.
    """
    kind = type(encoder)
    if HOST not in (c.__name__ for c in kind.__mro__):
        raise UsageError(f"Unsupported encoder {kind.__module__}.{kind.__qualname__}: only {HOST} is supported.")
    try:
        return _read(encoder)
    except (AttributeError, IndexError) as error:
        raise UsageError(
            f"Unsupported encoder {kind.__module__}.{kind.__qualname__}: it has the name of segment_anything's "
            f"{HOST} but not its layout ({error})."
        ) from error


def _read(encoder: Any) -> EncoderGeometry:
    block = encoder.blocks[0]
    patch = int(encoder.patch_embed.proj.kernel_size[0])
    image = int(encoder.img_size)
    grid = (image // patch,) * 2 if encoder.pos_embed is None else encoder.pos_embed.shape[1:3]
    return EncoderGeometry(
        image_size=image,
        patch_size=patch,
        grid=(int(grid[0]), int(grid[1])),
        dim=int(encoder.patch_embed.proj.out_channels),
        depth=len(encoder.blocks),
        heads=int(block.attn.num_heads),
        mlp_dim=int(block.mlp.lin1.out_features),
        out_channels=int(encoder.neck[0].out_channels),
        windows=tuple(int(b.window_size) for b in encoder.blocks),
    )
