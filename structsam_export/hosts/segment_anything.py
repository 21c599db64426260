"""Host: Meta's `segment_anything` (SAM, MedSAM and the demo model).

Its blocks take and give (B, H, W, D), cut windows themselves, project queries, keys and values by one Linear `qkv`, and
add decomposed relative positions to the scores.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.geometry import EncoderGeometry
from structsam_export.hosts.base import DecoderExport, unlike

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor, nn

    from structsam_export.hosts.base import Decode
    from structsam_export.runtime.features import Features
    from structsam_export.runtime.limits import PromptLimits
    from structsam_export.views import AttentionView, BlockView


@dataclass(frozen=True)
class Attention:
    """View of `segment_anything`'s Attention."""

    module: Any

    @property
    def heads(self) -> int:
        return int(self.module.num_heads)

    @property
    def dim(self) -> int:
        return int(self.module.qkv.in_features)

    @property
    def scale(self) -> float:
        return float(self.module.scale)

    @property
    def has_positions(self) -> bool:
        return bool(self.module.use_rel_pos)

    def linear(self, parts: str) -> tuple[Tensor, Tensor | None]:
        """Rows of `qkv`, which holds queries, keys and values one after the other."""
        start = "qkv".index(parts)
        rows = slice(start * self.dim, (start + len(parts)) * self.dim)
        qkv = self.module.qkv
        return qkv.weight[rows], None if qkv.bias is None else qkv.bias[rows]

    def positions(self, axis: int, size: int) -> Tensor:
        """The learnt table of one axis; resized by SAM's own rule if it is not 2 * size - 1 long."""
        from segment_anything.modeling.image_encoder import get_rel_pos

        table = (self.module.rel_pos_h, self.module.rel_pos_w)[axis]
        return get_rel_pos(size, size, table)

    def output(self, y: Tensor) -> Tensor:
        return self.module.proj(y)  # type: ignore[no-any-return]

    def stock(self, x: Tensor) -> Tensor:
        return self.module(x)  # type: ignore[no-any-return]


@dataclass(frozen=True)
class Block:
    """View of `segment_anything`'s Block."""

    module: Any

    @property
    def norm1(self) -> nn.Module:
        return self.module.norm1

    @property
    def attention(self) -> AttentionView:
        return Attention(self.module.attn)

    @property
    def norm2(self) -> nn.Module:
        return self.module.norm2

    @property
    def mlp(self) -> nn.Module:
        return self.module.mlp

    @property
    def window(self) -> int:
        return int(self.module.window_size)

    def to_grid(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        return x

    def from_grid(self, x: Tensor) -> Tensor:
        return x


class SegmentAnything:
    """`Sam` with its `ImageEncoderViT`."""

    ENCODER: ClassVar[str] = "ImageEncoderViT"
    ENCODER_INPUT: ClassVar[str] = "image"
    ENCODER_OUTPUTS: ClassVar[tuple[str, ...]] = ("image_embeddings",)
    PROMPTS: ClassVar[PromptLimits | None] = None
    MASKS: ClassVar[bool] = True

    def geometry(self, encoder: nn.Module) -> EncoderGeometry:
        """Sizes of an encoder.

        Raises:
            UsageError: another project's class of this name.
        """
        try:
            return read_geometry(encoder)
        except (AttributeError, IndexError) as error:
            raise unlike(encoder, type(self), error) from error

    def blocks(self, encoder: Any) -> Sequence[BlockView]:
        """The encoder's blocks, in order."""
        return [Block(block) for block in encoder.blocks]

    def refusal(self, method: str) -> str | None:
        """None: every method was made for these blocks."""
        return None

    def decoder(self, model: Any) -> Decode:
        """SAM's prompt encoder and mask decoder, called as `SamPredictor` calls them, one prompt after the other."""
        import numpy as np
        import torch

        from structsam_export.runtime.features import embedding_of

        def one(embedding: Tensor, coords: Tensor, labels: Tensor) -> Tensor:
            is_box = bool(labels[0] == 2)
            sparse, dense = model.prompt_encoder(
                points=None if is_box else (coords[None, :1], labels[None, :1]),
                boxes=coords.reshape(1, 4) if is_box else None,
                masks=None,
            )
            logits, _ = model.mask_decoder(
                image_embeddings=embedding,
                image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
            )
            return logits[0, 0]

        def decode(features: Features, coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
            embedding = torch.as_tensor(embedding_of(features))
            with torch.no_grad():
                rows = zip(torch.as_tensor(coords), torch.as_tensor(labels))
                return np.asarray(torch.stack([one(embedding, c, p) for c, p in rows]))

        return decode

    def decoder_for_export(self, model: Any) -> DecoderExport:
        """Prompts P (1 to 1024) and points K (1 to 256) are dynamic."""
        import torch

        h, w = model.prompt_encoder.image_embedding_size
        P, K = torch.export.Dim("P", min=1, max=1024), torch.export.Dim("K", min=1, max=256)
        # Not 1: the exporter would take a size of one for a constant.
        inputs = {
            "image_embeddings": (torch.zeros(1, model.prompt_encoder.embed_dim, h, w), None),
            "point_coords": (torch.zeros(3, 2, 2), {0: P, 1: K}),
            "point_labels": (torch.ones(3, 2, dtype=torch.int64), {0: P, 1: K}),
            "mask_input": (torch.zeros(3, 1, 4 * h, 4 * w), {0: P}),
            "has_mask_input": (torch.zeros(1), None),
        }
        return DecoderExport(
            decoder_module(model),
            {name: example for name, (example, _) in inputs.items()},
            {name: dynamic for name, (_, dynamic) in inputs.items()},
            ("low_res_masks", "iou_predictions"),
        )


def read_geometry(encoder: Any) -> EncoderGeometry:
    """Sizes of an `ImageEncoderViT`; AttributeError or IndexError if it has other parts."""
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
        positions=bool(block.attn.use_rel_pos),
    )


def embedded_points(prompt: Any, coords: Tensor, labels: Tensor) -> Tensor:
    """Points (P, K, 2) and labels (P, K) as a prompt encoder's tokens (P, K, C)."""
    import torch

    height, width = prompt.input_image_size
    place = (coords + 0.5) / torch.tensor([width, height], dtype=coords.dtype)
    place = prompt.pe_layer._pe_encoding(place)
    table = torch.cat([e.weight for e in (prompt.not_a_point_embed, *prompt.point_embeddings)])
    kind = torch.nn.functional.embedding(labels + 1, table)
    return torch.where((labels >= 0).unsqueeze(-1), place, torch.zeros_like(place)) + kind


def drawn_masks(decoder: Any, hs: Tensor, up: Tensor) -> Tensor:
    """SAM's masks (P, M, 4h, 4w) from the tokens (P, n, C) and the enlarged embedding (P, C / 8, 4h, 4w)."""
    import torch

    mlps = decoder.output_hypernetworks_mlps
    hyper = torch.stack([mlp(hs[:, 1 + i]) for i, mlp in enumerate(mlps)], 1)
    return (hyper @ up.flatten(2)).reshape(-1, len(mlps), *up.shape[-2:])


def decoder_module(sam: Any) -> nn.Module:
    """SAM's prompt encoder and mask decoder as one module of tensors; the contract is in `trace.py`.

    `repeat_interleave` of SAM's decoder becomes OneHot, which TensorRT cannot build; a dynamic `expand` says the same.
    """
    import torch

    class Decoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.prompt, self.mask = sam.prompt_encoder, sam.mask_decoder
            self.register_buffer("image_pe", sam.prompt_encoder.get_dense_pe(), persistent=False)

        def output_tokens(self) -> torch.Tensor:
            return torch.cat([self.mask.iou_token.weight, self.mask.mask_tokens.weight])

        def prompted(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Prompts as tokens (P, n, C), and the image embedding of each (P, C, h, w)."""
            image_embeddings, point_coords, point_labels, mask_input, has_mask_input = inputs
            empty = self.prompt.no_mask_embed.weight.reshape(1, -1, 1, 1)
            # Not a product: NaN in a mask input that nobody has filled would pass it.
            dense = torch.where(has_mask_input > 0, self.prompt.mask_downscaling(mask_input), empty)
            return embedded_points(self.prompt, point_coords, point_labels), image_embeddings + dense

        def transformed(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Tokens (P, n, C), the output tokens first; the embedding of four times its side (P, C / 8, 4h, 4w)."""
            m, image_embeddings = self.mask, inputs[0]
            sparse, src = self.prompted(*inputs)
            tokens = self.output_tokens().unsqueeze(0)
            tokens = torch.cat([tokens.expand(sparse.shape[0], -1, -1), sparse], 1)
            hs, src = m.transformer(src, self.image_pe.expand(sparse.shape[0], -1, -1, -1), tokens)
            h, w = image_embeddings.shape[-2:]
            return hs, m.output_upscaling(src.transpose(1, 2).reshape(-1, image_embeddings.shape[1], h, w))

        def drawn(self, hs: torch.Tensor, up: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            """Masks (P, M, 4h, 4w) and guesses of their IoU (P, M) from what `transformed` gives."""
            return drawn_masks(self.mask, hs, up), self.mask.iou_prediction_head(hs[:, 0])

        def forward(
            self,
            image_embeddings: torch.Tensor,
            point_coords: torch.Tensor,
            point_labels: torch.Tensor,
            mask_input: torch.Tensor,
            has_mask_input: torch.Tensor,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            return self.drawn(
                *self.transformed(image_embeddings, point_coords, point_labels, mask_input, has_mask_input)
            )

    return Decoder().eval()
