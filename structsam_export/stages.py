"""The sizes of a TinyViT encoder; PyTorch is not needed to know them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from structsam_export.geometry import EncoderGeometry

MLP_RATIO = 4  # hidden channels of MLPs and of inverted bottlenecks, by channels


@dataclass(frozen=True)
class TinyStages:
    """Four stages.

    Args:
        stem: side of the first two convolutions: 3, which halve the image (MobileSAM), or 1 (LiteMedSAM).
        dims, depths: channels and blocks of each stage.
        heads, windows: attention heads, and side of the windows in tokens; 0 in the first stage, which has none.
    """

    stem: int
    dims: tuple[int, ...]
    depths: tuple[int, ...]
    heads: tuple[int, ...]
    windows: tuple[int, ...]

    @property
    def strides(self) -> tuple[int, ...]:
        """By which each way to the next stage divides the grid: the last one keeps it."""
        return (2,) * (len(self.dims) - 2) + (1,)

    @property
    def patch_size(self) -> int:
        """Side of one token of the embedding in pixels."""
        return int((4 if self.stem == 3 else 1) * 2 ** (len(self.dims) - 2))

    @property
    def medsam(self) -> bool:
        """Whether it is LiteMedSAM's kind, which takes images in [0, 1]."""
        return self.stem == 1

    def geometry(self, image_size: int, out_channels: int) -> EncoderGeometry:
        """Sizes of the encoder with these stages; width, heads and MLP are those of the last one.

        It has no blocks, as there are none that a method could change.
        """
        side = image_size // self.patch_size
        return EncoderGeometry(
            image_size=image_size,
            patch_size=self.patch_size,
            grid=(side, side),
            dim=self.dims[-1],
            depth=0,
            heads=self.heads[-1],
            mlp_dim=MLP_RATIO * self.dims[-1],
            out_channels=out_channels,
            windows=(),
            other_macs=self.macs(image_size, out_channels),
        )

    def macs(self, image_size: int, out_channels: int) -> int:
        """Multiply-accumulates of one image, counted as in `macs`: LayerNorm 5 per element, pads of windows included.

        BatchNorm counts nothing: it is part of its convolution once that is prepared for running.
        """
        side, dim = image_size, self.dims[0]
        stride, total = (2 if self.stem == 3 else 1), 0
        for channels, out in ((3, dim // 2), (dim // 2, dim)):
            side //= stride
            total += side**2 * self.stem**2 * channels * out
        for i, dim in enumerate(self.dims):
            total += self.depths[i] * (self.attending(side, i) if i else self.bottleneck(side, dim))
            if i < len(self.dims) - 1:
                out = self.dims[i + 1]
                total += side**2 * dim * out
                side //= self.strides[i]
                total += side**2 * (9 * out + out * out)
        return total + side**2 * (self.dims[-1] * out_channels + 9 * out_channels**2)

    @staticmethod
    def bottleneck(side: int, dim: int) -> int:
        """MACs of one block of the first stage on a grid of `side`."""
        hidden = MLP_RATIO * dim
        return side**2 * (2 * dim * hidden + 9 * hidden)

    def attending(self, side: int, index: int) -> int:
        """MACs of one block of stage `index` on a grid of `side`."""
        dim, padded = self.dims[index], side + -side % self.windows[index]
        tokens, rest = padded**2, side**2 * dim * (2 * MLP_RATIO * dim + 9 + 5)
        return tokens * (4 * dim * dim + 5 * dim) + self.scores(side, index) + rest

    def scores(self, side: int, index: int) -> int:
        """MACs of q.k and of weights times values of one block: all that merging within windows would shorten most."""
        return 2 * (side + -side % self.windows[index]) ** 2 * self.windows[index] ** 2 * self.dims[index]

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in asdict(self).items()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> TinyStages:
        """Inverse of `to_dict`."""
        values: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in data.items()}
        return cls(**values)
