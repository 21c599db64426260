"""Checkpoints of SAM's relatives, told by the names of their tensors, and what to do with them."""

from __future__ import annotations

import re
from collections.abc import Iterable

# Pattern of a tensor's name -> what it is, and what to do. The first that fits counts.
RELATIVES = (
    (
        r"image_encoder\.trunk\.|sam_mask_decoder\.|memory_attention\.",
        "SAM 2, which is not supported. Pass a checkpoint of the first SAM.",
    ),
    (
        r"image_encoder\.(stages|fuse_stage|backbone)\.",
        "EdgeSAM or another model with a convolutional encoder, which is not supported. Pass one with a ViT encoder.",
    ),
    (
        r"vision_encoder\.backbone\.|memory_encoder\.|tracker_model\.|detector_model\.",
        "SAM 2 or SAM 3 as transformers stores it, which is not supported. Pass a checkpoint of the first SAM.",
    ),
    (
        r"prompt_encoder\.invalid_points\.",
        "EfficientSAM. Leave --model away to read its size from the weights, or pass --model efficient_sam_ti or "
        "efficient_sam_s.",
    ),
    (
        r"image_encoder\.blocks\.\d+\.mlp\.fc1\.",
        "an encoder of EfficientSAM without its decoder. Pass the whole model's checkpoint.",
    ),
    (
        r"mask_decoder\.(hf_|hq_|compress_vit_|encoder_conv|mask_conv|embedding_encoder|embedding_maskfeature)",
        "SAM-HQ. Leave --model away to read its size from the weights, or pass --model sam_hq_vit_b, sam_hq_vit_l or "
        "sam_hq_vit_h.",
    ),
    (
        r"(^|\.)w_[ab]_\d+$|lora_|\.linear_[ab]_[qkv]|\.qkv\.qkv\.|(^|\.)w_[AB]s\.",
        "SAM with LoRA weights (as SAMed's). Merge them into the model's own weights (W + B A), and save its "
        "state_dict.",
    ),
    (
        r"[Aa]dapter",
        "SAM with adapters (as SAM-Med2D or Medical SAM Adapter), which is not supported: adapters are more layers.",
    ),
    (r"\.weight_format$|\.qweight$|\.SCB$|_packed_params", "quantised weights. Pass weights that are not quantised."),
)


def relative_of(names: Iterable[str]) -> str | None:
    """What a checkpoint looks like by the names of its tensors, and what to do; None if it looks like nothing known."""
    every = list(names)
    return next((said for pattern, said in RELATIVES if any(re.search(pattern, name) for name in every)), None)
