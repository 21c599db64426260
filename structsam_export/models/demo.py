"""The bundled demo model: SAM's own architecture, small enough to ship.

512 px, a 32x32 token grid, 8 blocks of width 192 with 3 heads, global attention in blocks 2, 5 and 7 and
12x12 windows elsewhere (32 -> 36, so its windows carry pads as SAM's 64 -> 70 do). Prompt encoder and mask
decoder have SAM's shapes. 8.7 M parameters; weights by `scripts/demo_model`.

At 1024 px, the size that most programs for SAM assume, it is the same weights on a 64x64 grid, their positions
interpolated (`positions.fitted`).
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

IMAGE_SIZE = 512
PATCH_SIZE = 16
EMBED_DIM = 256


def build_demo_1024() -> Sam:
    """Build the demo model for images of 1024 px, with random weights."""
    return build_demo(1024)


def build_demo(image_size: int = IMAGE_SIZE) -> Sam:
    """Build the demo model with random weights (a `segment_anything` `Sam`) for square images of `image_size` px."""
    import torch
    from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    grid = image_size // PATCH_SIZE
    return Sam(
        image_encoder=ImageEncoderViT(
            img_size=image_size,
            patch_size=PATCH_SIZE,
            embed_dim=192,
            depth=8,
            num_heads=3,
            mlp_ratio=4,
            out_chans=EMBED_DIM,
            norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
            qkv_bias=True,
            use_rel_pos=True,
            global_attn_indexes=(2, 5, 7),
            window_size=12,
        ),
        prompt_encoder=PromptEncoder(
            embed_dim=EMBED_DIM,
            image_embedding_size=(grid, grid),
            input_image_size=(image_size, image_size),
            mask_in_chans=16,
        ),
        mask_decoder=MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(depth=2, embedding_dim=EMBED_DIM, mlp_dim=2048, num_heads=8),
            transformer_dim=EMBED_DIM,
            iou_head_depth=3,
            iou_head_hidden_dim=256,
        ),
    )
