"""Host: SAM-HQ. Its blocks are SAM's; its encoder gives two tensors, its decoder adds a mask of its own to SAM's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.hosts.base import DecoderExport
from structsam_export.hosts.segment_anything import SegmentAnything, decoder_module, drawn_masks

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np
    from torch import Tensor, nn

    from structsam_export.hosts.base import Decode
    from structsam_export.runtime.features import Features


class SamHQ(SegmentAnything):
    """`segment_anything_hq`'s `Sam` with an `HQImageEncoder` (`models.families.sam_hq`)."""

    ENCODER: ClassVar[str] = "HQImageEncoder"
    ENCODER_OUTPUTS: ClassVar[tuple[str, ...]] = ("image_embeddings", "interm_embeddings")

    def decoder(self, model: Any) -> Decode:
        """The package's own decoding, called as its predictor calls it, one prompt after the other."""
        import numpy as np
        import torch

        from structsam_export.runtime.features import named

        def one(tensors: Mapping[str, Tensor], coords: Tensor, labels: Tensor) -> Tensor:
            is_box = bool(labels[0] == 2)
            sparse, dense = model.prompt_encoder(
                points=None if is_box else (coords[None, :1], labels[None, :1]),
                boxes=coords.reshape(1, 4) if is_box else None,
                masks=None,
            )
            logits, _ = model.mask_decoder(
                image_embeddings=tensors["image_embeddings"],
                image_pe=model.prompt_encoder.get_dense_pe(),
                sparse_prompt_embeddings=sparse,
                dense_prompt_embeddings=dense,
                multimask_output=False,
                hq_token_only=False,
                interm_embeddings=[tensors["interm_embeddings"]],
            )
            return logits[0, 0]

        def decode(features: Features, coords: np.ndarray, labels: np.ndarray) -> np.ndarray:
            with torch.no_grad():
                tensors = {name: torch.as_tensor(value) for name, value in named(features).items()}
                rows = zip(torch.as_tensor(coords), torch.as_tensor(labels))
                return np.asarray(torch.stack([one(tensors, c, p) for c, p in rows]))

        return decode

    def decoder_for_export(self, model: Any) -> DecoderExport:
        """SAM's inputs, and `interm_embeddings` (1, h, w, D) and `hq_token_only` (1,): not 0 for SAM-HQ's mask alone.

        Each of the masks is SAM's with SAM-HQ's added. The package gives one of them in either case: the first, or
        with `multimask_output` that of the other three with the largest guess.
        """
        import torch

        stock = super().decoder_for_export(model)
        h, w = model.prompt_encoder.image_embedding_size
        width = model.mask_decoder.compress_vit_feat[0].in_channels
        inputs = {**stock.inputs, "interm_embeddings": torch.zeros(1, h, w, width), "hq_token_only": torch.zeros(1)}
        shapes = {**stock.dynamic_shapes, "interm_embeddings": None, "hq_token_only": None}
        return DecoderExport(hq_decoder_module(model), inputs, shapes, stock.outputs)


def hq_decoder_module(sam: Any) -> nn.Module:
    """Prompt encoder and HQ mask decoder as one module of tensors; see `SamHQ.decoder_for_export`."""
    import torch

    stock: Any = type(decoder_module(sam))

    class Decoder(stock):  # type: ignore[misc]
        def output_tokens(self) -> Tensor:
            return torch.cat([super().output_tokens(), self.mask.hf_token.weight])

        def forward(
            self,
            image_embeddings: Tensor,
            point_coords: Tensor,
            point_labels: Tensor,
            mask_input: Tensor,
            has_mask_input: Tensor,
            interm_embeddings: Tensor,
            hq_token_only: Tensor,
        ) -> tuple[Tensor, Tensor]:
            m = self.mask
            prompts = (point_coords, point_labels, mask_input, has_mask_input)
            hs, up = self.transformed(image_embeddings, *prompts)
            early = m.compress_vit_feat(interm_embeddings.permute(0, 3, 1, 2))
            fused = m.embedding_maskfeature(up) + (m.embedding_encoder(image_embeddings) + early)
            masks = drawn_masks(m, hs, up)
            hq = (m.hf_mlp(hs[:, m.num_mask_tokens]).unsqueeze(1) @ fused.flatten(2)).reshape(-1, 1, *fused.shape[-2:])
            only = (hq_token_only > 0).reshape(1, 1, 1, 1)
            return torch.where(only, torch.zeros_like(masks), masks) + hq, m.iou_prediction_head(hs[:, 0])

    return Decoder().eval()
