"""A host of another make than SAM, to prove the interface: one file, and one line in `HOSTS`.

Its blocks take and give tokens as a sequence (B, N, D), project queries, keys and values by Linears of their own, and
know no relative positions.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from structsam_export.geometry import EncoderGeometry
from structsam_export.hosts.base import DecoderExport, unlike
from structsam_export.tokens import WindowGrid

DIM, HEADS, PATCH, OUT = 16, 2, 16, 8


class ToySelfAttention(nn.Module):
    """Attention within each sequence (B, n, D)."""

    def __init__(self):
        super().__init__()
        self.query, self.key, self.value, self.out = (nn.Linear(DIM, DIM) for _ in range(4))

    def forward(self, x):
        q, k, v = (m(x).unflatten(2, (HEADS, -1)).transpose(1, 2) for m in (self.query, self.key, self.value))
        weights = (q @ k.transpose(2, 3) / (DIM // HEADS) ** 0.5).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class ToyBlock(nn.Module):
    """A transformer block over a grid (side, side); windows of `window` tokens a side, 0: the whole grid."""

    def __init__(self, side, window):
        super().__init__()
        self.windows = WindowGrid((side, side), window)
        self.before, self.after = nn.LayerNorm(DIM), nn.LayerNorm(DIM)
        self.attention = ToySelfAttention()
        self.feed = nn.Sequential(nn.Linear(DIM, 2 * DIM), nn.GELU(), nn.Linear(2 * DIM, DIM))

    def forward(self, x):
        grid = self.before(x).unflatten(1, self.windows.shape)
        made = self.windows.unpartition(self.attention(self.windows.partition(grid)))
        x = x + made.flatten(1, 2)
        return x + self.feed(self.after(x))


class ToyEncoder(nn.Module):
    """Image (B, 3, S, S) -> embedding (B, OUT, S / 16, S / 16)."""

    def __init__(self, image=96, windows=(4, 0, 4)):
        super().__init__()
        self.image, self.side = image, image // PATCH
        self.patches = nn.Conv2d(3, DIM, PATCH, PATCH)
        self.places = nn.Parameter(torch.randn(1, self.side**2, DIM))
        self.stack = nn.ModuleList(ToyBlock(self.side, window) for window in windows)
        self.head = nn.Linear(DIM, OUT)

    def forward(self, image):
        x = self.patches(image).flatten(2).transpose(1, 2) + self.places
        for block in self.stack:
            x = block(x)
        return self.head(x).transpose(1, 2).unflatten(2, (self.side, self.side))


@dataclass(frozen=True)
class AttentionOfToy:
    module: Any
    heads: int = HEADS
    dim: int = DIM
    scale: float = (DIM // HEADS) ** -0.5
    has_positions: bool = False

    def linear(self, parts):
        linears = [{"q": self.module.query, "k": self.module.key, "v": self.module.value}[part] for part in parts]
        return torch.cat([m.weight for m in linears]), torch.cat([m.bias for m in linears])

    def positions(self, axis, size):
        raise NotImplementedError

    def output(self, y):
        return self.module.out(y)

    def stock(self, x):
        return self.module(x.flatten(1, 2)).view(x.shape)


@dataclass(frozen=True)
class BlockOfToy:
    module: Any

    @property
    def norm1(self):
        return self.module.before

    @property
    def attention(self):
        return AttentionOfToy(self.module.attention)

    @property
    def norm2(self):
        return self.module.after

    @property
    def mlp(self):
        return self.module.feed

    @property
    def window(self):
        return self.module.windows.window

    def to_grid(self, x, shape):
        return x.unflatten(1, shape)

    def from_grid(self, x):
        return x.flatten(1, 2)


class ToyHost:
    ENCODER = "ToyEncoder"
    ENCODER_INPUT = "image"
    ENCODER_OUTPUTS = ("image_embeddings",)
    PROMPTS = None
    MASKS = True

    def geometry(self, encoder):
        try:
            windows = tuple(block.windows.window for block in encoder.stack)
            grid = (encoder.side, encoder.side)
        except AttributeError as error:
            raise unlike(encoder, ToyHost, error) from error
        return EncoderGeometry(encoder.image, PATCH, grid, DIM, len(windows), HEADS, 2 * DIM, OUT, windows)

    def blocks(self, encoder):
        return [BlockOfToy(block) for block in encoder.stack]

    def refusal(self, method):
        return "it is a toy" if method == "a method that no toy can run" else None

    def decoder(self, model):
        """A mask is the first channel of the embedding, whatever the prompt."""

        def decode(embedding, coords, labels):
            return embedding[:, :1].repeat(len(coords), 0)[:, 0].repeat(4, 1).repeat(4, 2)

        return decode

    def decoder_for_export(self, model):
        side = model.encoder.side
        return DecoderExport(nn.Identity(), {"image_embeddings": torch.zeros(1, OUT, side, side)}, {}, ("masks",))
