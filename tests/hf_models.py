"""Small `SamModel`s of transformers with random weights, as their users have them on disk."""

from __future__ import annotations

import os

import torch

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # nothing here is to come from a network

# 128 px, a grid of 8x8, windows of 3, block 1 of three global; as SlimSAM: heads of 14 channels, an MLP that is not 4x.
VISION = {
    "hidden_size": 28,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "image_size": 128,
    "global_attn_indexes": [1],
    "window_size": 3,
    "mlp_dim": 58,
    "output_channels": 32,
    "num_pos_feats": 16,
}
PROMPTS = {"hidden_size": 32, "image_size": 128}
DECODER = {"hidden_size": 32, "mlp_dim": 64, "iou_head_hidden_dim": 32}


def hf_sam(vision=VISION, prompts=PROMPTS, decoder=DECODER, seed=0):
    """A `SamModel` with random weights everywhere, in eval mode."""
    from transformers import SamConfig, SamMaskDecoderConfig, SamModel, SamPromptEncoderConfig, SamVisionConfig

    parts = {
        "vision_config": SamVisionConfig(**vision),
        "prompt_encoder_config": SamPromptEncoderConfig(**prompts),
        "mask_decoder_config": SamMaskDecoderConfig(**decoder),
    }
    torch.manual_seed(seed)
    model = SamModel(SamConfig(**{name: part.to_dict() for name, part in parts.items()})).eval().requires_grad_(False)
    for name, p in model.named_parameters():
        norm = "norm" in name and name.endswith("weight")
        p.copy_(float(norm) + torch.randn_like(p) * (0.1 if p.ndim == 1 else 0.05))
    return model


def masks_of_hf(model, image, points, labels):
    """(logits (3, h, w), IoU predictions (3)) of one prompt, as transformers computes them."""
    with torch.no_grad():
        found = model(pixel_values=image, input_points=points[None, None], input_labels=labels[None, None])
    return found.pred_masks[0, 0], found.iou_scores[0, 0]


def masks_of_sam(sam, image, points, labels):
    """The same of a `segment_anything` `Sam`."""
    with torch.no_grad():
        embedding = sam.image_encoder(image)
        sparse, dense = sam.prompt_encoder(points=(points[None], labels[None]), boxes=None, masks=None)
        masks, scores = sam.mask_decoder(embedding, sam.prompt_encoder.get_dense_pe(), sparse, dense, True)
    return masks[0], scores[0]
