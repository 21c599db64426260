"""A whole SAM that is small enough to be exported in seconds: SAM's architecture with random weights."""

from __future__ import annotations

from functools import partial

import torch

IMAGE, OUT = 96, 8


def tiny_encoder(image=(80, 80), window=4, depth=3, heads=2, dim=16, patch=16, global_layers=(1,)):
    """A segment_anything encoder with random weights everywhere (relative positions included)."""
    from segment_anything.modeling import ImageEncoderViT

    torch.manual_seed(0)
    encoder = ImageEncoderViT(
        img_size=max(image),
        patch_size=patch,
        embed_dim=dim,
        depth=depth,
        num_heads=heads,
        mlp_ratio=2,
        out_chans=8,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=global_layers,
        window_size=window,
    )
    for name, p in encoder.named_parameters():
        if "pos" in name:
            torch.nn.init.normal_(p, std=0.5)
    return encoder.eval().requires_grad_(False)


def build():
    """The encoder of `tiny_encoder` with a grid of 6x6, and a decoder as narrow; weights as PyTorch starts them."""
    from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    encoder = tiny_encoder(image=(IMAGE, IMAGE))
    grid = IMAGE // encoder.patch_embed.proj.kernel_size[0]
    prompts = PromptEncoder(OUT, (grid, grid), (IMAGE, IMAGE), 16)
    decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=OUT, mlp_dim=64, num_heads=2),
        transformer_dim=OUT,
        iou_head_depth=3,
        iou_head_hidden_dim=32,
    )
    return Sam(image_encoder=encoder, prompt_encoder=prompts, mask_decoder=decoder)


def save(path):
    """Write it as a checkpoint; its encoder traces like `tiny_encoder`, so that both share the traces of a run."""
    torch.save(build().state_dict(), path)
    return path
