"""TinyViT as MobileSAM and LiteMedSAM use it for an image encoder, with the names of their state dicts.

Architecture: TinyViT-5M (arXiv 2207.10666) as changed by MobileSAM (arXiv 2306.14289): the last stage keeps the grid of
the one before, the classifier is left out of the forward pass, and SAM's neck makes the embedding. LiteMedSAM is the
same on 256 px, its two first convolutions 1x1 without stride, so that both have a 64x64 embedding.

This module is imported only where one is built, so that PyTorch may be imported on top.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling.common import LayerNorm2d
from torch import Tensor, nn

from structsam_export.stages import MLP_RATIO, TinyStages


class BatchNorm(nn.Module):  # type: ignore[misc]
    """BatchNorm2d in use: without the counter of training steps, an integer that weights need not have."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels))
        self.register_buffer("running_mean", torch.zeros(channels))
        self.register_buffer("running_var", torch.ones(channels))

    def forward(self, x: Tensor) -> Tensor:
        return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias)


class ConvNorm(nn.Sequential):  # type: ignore[misc]
    """Convolution without bias (`c`) and its normalisation (`bn`)."""

    def __init__(self, channels: int, out: int, side: int = 1, stride: int = 1, groups: int = 1) -> None:
        super().__init__()
        self.c = nn.Conv2d(channels, out, side, stride, side // 2, groups=groups, bias=False)
        self.bn = BatchNorm(out)


class PatchEmbed(nn.Module):  # type: ignore[misc]
    """Two convolutions: 3x3 of stride 2 (MobileSAM), or 1x1 (LiteMedSAM)."""

    def __init__(self, dim: int, side: int) -> None:
        super().__init__()
        stride = 2 if side == 3 else 1
        self.seq = nn.Sequential(ConvNorm(3, dim // 2, side, stride), nn.GELU(), ConvNorm(dim // 2, dim, side, stride))

    def forward(self, x: Tensor) -> Tensor:
        return self.seq(x)


class MBConv(nn.Module):  # type: ignore[misc]
    """Inverted bottleneck of the first stage, (B, C, H, W)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        hidden = MLP_RATIO * dim
        self.conv1 = ConvNorm(dim, hidden)
        self.conv2 = ConvNorm(hidden, hidden, 3, groups=hidden)
        self.conv3 = ConvNorm(hidden, dim)

    def forward(self, x: Tensor) -> Tensor:
        return F.gelu(x + self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x))))))


class PatchMerging(nn.Module):  # type: ignore[misc]
    """From one stage to the next, (B, C, H, W) -> (B, C', H / stride, W / stride)."""

    def __init__(self, dim: int, out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = ConvNorm(dim, out)
        self.conv2 = ConvNorm(out, out, 3, stride, groups=out)
        self.conv3 = ConvNorm(out, out)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv3(F.gelu(self.conv2(F.gelu(self.conv1(x)))))


class Attention(nn.Module):  # type: ignore[misc]
    """Attention within windows (B, N, C); its norm is its own, and scores get a bias by the distance of two tokens."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.num_heads, self.window, self.scale = heads, window, (dim // heads) ** -0.5
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.attention_biases = nn.Parameter(torch.zeros(heads, window * window))

    def bias(self) -> Tensor:
        """(heads, N, N): entry |rows apart| * window + |columns apart| of each head's table."""
        place = torch.arange(self.window**2, device=self.attention_biases.device)
        row, column = place // self.window, place % self.window
        apart = (row[:, None] - row).abs() * self.window + (column[:, None] - column).abs()
        return self.attention_biases[:, apart]

    def forward(self, x: Tensor) -> Tensor:
        B, N, C = x.shape
        # Per head its queries, keys and values one after the other, unlike SAM's own qkv.
        q, k, v = self.qkv(self.norm(x)).view(B, N, self.num_heads, 3, -1).permute(3, 0, 2, 1, 4).unbind(0)
        weights = ((q * self.scale) @ k.transpose(2, 3) + self.bias()).softmax(-1)
        return self.proj((weights @ v).transpose(1, 2).reshape(B, N, C))


class MLP(nn.Module):  # type: ignore[misc]
    """Norm and two linear layers."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        self.fc1, self.fc2 = nn.Linear(dim, MLP_RATIO * dim), nn.Linear(MLP_RATIO * dim, dim)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(self.norm(x))))


class TinyViTBlock(nn.Module):  # type: ignore[misc]
    """Windowed attention, a 3x3 convolution of each channel, and an MLP; (B, C, H, W)."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.window_size = window
        self.attn = Attention(dim, heads, window)
        self.mlp = MLP(dim)
        self.local_conv = ConvNorm(dim, dim, 3, groups=dim)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attended(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        x = self.local_conv(x).permute(0, 2, 3, 1)
        return (x + self.mlp(x)).permute(0, 3, 1, 2)

    def attended(self, x: Tensor) -> Tensor:
        """Attention of tokens (B, H, W, C), window by window; grids that do not divide get zeros below and beside."""
        B, H, W, C = x.shape
        w = self.window_size
        x = F.pad(x, (0, 0, 0, -W % w, 0, -H % w))
        rows, columns = x.shape[1] // w, x.shape[2] // w
        cut = x.view(B, rows, w, columns, w, C).transpose(2, 3)
        made = self.attn(cut.reshape(-1, w * w, C)).view(cut.shape)
        return made.transpose(2, 3).reshape(B, rows * w, columns * w, C)[:, :H, :W]


class Stage(nn.Module):  # type: ignore[misc]
    """Blocks of one width, and the way to the next stage; None after the last."""

    def __init__(self, blocks: list[nn.Module], downsample: nn.Module | None) -> None:
        super().__init__()
        self.blocks, self.downsample = nn.ModuleList(blocks), downsample

    def forward(self, x: Tensor) -> Tensor:
        for block in self.blocks:
            x = block(x)
        return x if self.downsample is None else self.downsample(x)


class TinyViT(nn.Module):  # type: ignore[misc]
    """Image (B, 3, S, S) float32 -> embedding (B, out_channels, S / 4 or 16, same)."""

    def __init__(self, sizes: TinyStages, image_size: int, out_channels: int) -> None:
        super().__init__()
        self.img_size = image_size
        self.patch_embed = PatchEmbed(sizes.dims[0], sizes.stem)
        self.layers = nn.ModuleList(self.stage(sizes, i) for i in range(len(sizes.dims)))
        self.neck = nn.Sequential(
            nn.Conv2d(sizes.dims[-1], out_channels, 1, bias=False),
            LayerNorm2d(out_channels),
            nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
            LayerNorm2d(out_channels),
        )

    @staticmethod
    def stage(sizes: TinyStages, index: int) -> Stage:
        """The first stage is convolutions, the others attend in windows."""
        dim, last = sizes.dims[index], index == len(sizes.dims) - 1
        down = None if last else PatchMerging(dim, sizes.dims[index + 1], sizes.strides[index])
        if index == 0:
            return Stage([MBConv(dim) for _ in range(sizes.depths[0])], down)
        blocks: list[Any] = [
            TinyViTBlock(dim, sizes.heads[index], sizes.windows[index]) for _ in range(sizes.depths[index])
        ]
        return Stage(blocks, down)

    def forward(self, image: Tensor) -> Tensor:
        x = self.patch_embed(image)
        for layer in self.layers:
            x = layer(x)
        return self.neck(x)
