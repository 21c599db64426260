"""EfficientSAM's modules (arXiv 2312.00863), as changes of `segment_anything`'s; `sources` maps the names of weights.

The encoder is SAM's with global attention alone and no relative positions. Prompts are up to six points, of which the
missing ones have an embedding of their own; there are no masks among them. In the two-way transformer every
self-attention is a residual, the positions of prompts stay in it from the second layer on, and activations are GELU.

This module is imported only where one is built, so that PyTorch may be imported on top.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from segment_anything.modeling import ImageEncoderViT, MaskDecoder, TwoWayTransformer
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.prompt_encoder import PositionEmbeddingRandom
from segment_anything.modeling.transformer import Attention, TwoWayAttentionBlock
from torch import Tensor, nn

POINTS = 6  # that a prompt consists of, corners of a box included


class EfficientSamViT(ImageEncoderViT):  # type: ignore[misc]
    """Image (B, 3, S, S) -> embedding (B, C, h, w); SAM's class of another name, which hosts are told by."""


class PointEncoder(nn.Module):  # type: ignore[misc]
    """Points and boxes as POINTS tokens; takes what SAM's prompt encoder takes, but no masks."""

    def __init__(self, channels: int, grid: tuple[int, int], image: tuple[int, int]) -> None:
        super().__init__()
        self.embed_dim, self.image_embedding_size, self.input_image_size = channels, grid, image
        self.pe_layer = PositionEmbeddingRandom(channels // 2)
        self.invalid_points = nn.Embedding(1, channels)
        self.point_embeddings = nn.Embedding(1, channels)
        self.bbox_top_left_embeddings = nn.Embedding(1, channels)
        self.bbox_bottom_right_embeddings = nn.Embedding(1, channels)

    def get_dense_pe(self) -> Tensor:
        """Positions of the image embedding (1, C, h, w)."""
        return self.pe_layer(self.image_embedding_size).unsqueeze(0)

    def embedded(self, coords: Tensor, labels: Tensor) -> Tensor:
        """The first POINTS of points (P, K, 2) in pixels and labels (P, K), missing ones filled in: (P, POINTS, C).

        Labels are SAM's: -1 no point, 0 background, 1 foreground, 2 and 3 corners of a box. A missing point lies at
        (-1, -1), as in the published code; a background point has its position and no embedding.
        """
        prompts = coords.shape[0]
        coords = torch.cat([coords, coords.new_full((prompts, POINTS, 2), -1.0)], 1)[:, :POINTS]
        labels = torch.cat([labels, labels.new_full((prompts, POINTS), -1)], 1)[:, :POINTS]
        coords = torch.where((labels < 0).unsqueeze(-1), torch.full_like(coords, -1.0), coords)
        height, width = self.input_image_size
        place = (coords + 0.5) / torch.tensor([width, height], dtype=coords.dtype, device=coords.device)
        known = (self.point_embeddings, self.bbox_top_left_embeddings, self.bbox_bottom_right_embeddings)
        nothing = torch.zeros_like(self.invalid_points.weight)
        table = torch.cat([self.invalid_points.weight, nothing, *(e.weight for e in known)])
        return self.pe_layer._pe_encoding(place) + F.embedding(labels + 1, table)

    def forward(self, points: Any, boxes: Tensor | None, masks: None) -> tuple[Tensor, Tensor]:
        """Points ((P, N, 2), (P, N)) or None and boxes (P, 4) or None -> tokens, and zeros to add to the image."""
        parts = [] if points is None else [points]
        if boxes is not None:
            corners = torch.tensor([2, 3], device=boxes.device).expand(len(boxes), 2)
            parts.append((boxes.reshape(-1, 2, 2), corners))
        coords, labels = (torch.cat(found, 1) for found in zip(*parts))
        tokens = self.embedded(coords, labels.long())
        return tokens, tokens.new_zeros(1, self.embed_dim, 1, 1)


class Head(MLP):  # type: ignore[misc]
    """SAM's MLP, with GELU."""

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers[:-1]:
            x = F.gelu(layer(x))
        return self.layers[-1](x)


class SelfAttention(Attention):  # type: ignore[misc]
    """Attention of tokens to each other, added to them."""

    def forward(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        return q + super().forward(q, k, v)


class TwoWayBlock(TwoWayAttentionBlock):  # type: ignore[misc]
    """SAM's layer, but for how its tokens attend to each other."""

    def __init__(self, width: int, heads: int, mlp_dim: int, rate: int, first: bool) -> None:
        # SAM's first layer replaces tokens by their self-attention and adds no positions: both are done here.
        super().__init__(width, heads, mlp_dim, nn.GELU, rate, skip_first_layer_pe=True)
        self.self_attn, self.first = SelfAttention(width, heads), first

    def forward(self, queries: Tensor, keys: Tensor, query_pe: Tensor, key_pe: Tensor) -> tuple[Tensor, Tensor]:
        queries = queries if self.first else queries + query_pe
        made: tuple[Tensor, Tensor] = super().forward(queries, keys, query_pe, key_pe)
        return made


class TwoWay(TwoWayTransformer):  # type: ignore[misc]
    """SAM's transformer with those layers."""

    def __init__(
        self, depth: int, embedding_dim: int, mlp_dim: int, num_heads: int, attention_downsample_rate: int
    ) -> None:
        super().__init__(0, embedding_dim, num_heads, mlp_dim, nn.GELU, attention_downsample_rate)
        made = (TwoWayBlock(embedding_dim, num_heads, mlp_dim, attention_downsample_rate, i == 0) for i in range(depth))
        self.depth, self.layers = depth, nn.ModuleList(made)


class EfficientDecoder(MaskDecoder):  # type: ignore[misc]
    """SAM's mask decoder; the single mask is that of the three with the largest guess of its IoU."""

    def __init__(self, **sizes: Any) -> None:
        super().__init__(**sizes)
        width, hidden, depth = sizes["transformer_dim"], sizes["iou_head_hidden_dim"], sizes["iou_head_depth"]
        self.output_upscaling[1] = nn.GroupNorm(1, width // 4)
        masks = range(self.num_mask_tokens)
        self.output_hypernetworks_mlps = nn.ModuleList(Head(width, width, width // 8, 3) for _ in masks)
        self.iou_prediction_head = Head(width, hidden, self.num_mask_tokens, depth)

    def predict_masks(self, *args: Any, **tensors: Tensor) -> tuple[Tensor, Tensor]:
        """As SAM's, the best mask first."""
        return self.best_first(*super().predict_masks(*args, **tensors))

    @staticmethod
    def best_first(masks: Tensor, guesses: Tensor) -> tuple[Tensor, Tensor]:
        """Masks (P, M, h, w) and guesses of their IoU (P, M), the first of each replaced by the best of the others.

        The published code never shows the first: `EfficientSam.forward` gives the three others, its example the best.
        A sum of one mask and zeros, as gathering would need indices of the masks' size.
        """
        others, scores = masks[:, 1:], guesses[:, 1:]
        best = torch.arange(scores.shape[1], device=scores.device) == scores.argmax(1, keepdim=True)
        one = torch.where(best[:, :, None, None], others, torch.zeros_like(others)).sum(1, keepdim=True)
        return torch.cat([one, others], 1), torch.cat([scores.amax(1, keepdim=True), scores], 1)
