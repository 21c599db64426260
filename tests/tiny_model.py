"""Whole SAMs that are small enough to be exported in seconds: SAM's architecture with random weights."""

from __future__ import annotations

from functools import partial

import torch

IMAGE, PATCH, DIM, OUT = 128, 16, 32, 32


def build():
    """128 px, a grid of 8x8, windows of 3 (so 8 -> 9 with pads), block 1 of three global; width 32 throughout."""
    from segment_anything.modeling import ImageEncoderViT

    encoder = ImageEncoderViT(
        img_size=IMAGE,
        patch_size=PATCH,
        embed_dim=DIM,
        depth=3,
        num_heads=2,
        mlp_ratio=4,
        out_chans=OUT,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6),
        qkv_bias=True,
        use_rel_pos=True,
        global_attn_indexes=(1,),
        window_size=3,
    )
    return whole(encoder, OUT)


def whole(encoder, out):
    """A SAM around an encoder whose embeddings have `out` channels; weights as PyTorch starts them."""
    from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    grid, image = encoder.img_size // PATCH, encoder.img_size
    prompts = PromptEncoder(out, (grid, grid), (image, image), 16)
    decoder = MaskDecoder(
        num_multimask_outputs=3,
        transformer=TwoWayTransformer(depth=2, embedding_dim=out, mlp_dim=64, num_heads=2),
        transformer_dim=out,
        iou_head_depth=3,
        iou_head_hidden_dim=32,
    )
    return Sam(image_encoder=encoder, prompt_encoder=prompts, mask_decoder=decoder)


def save(path):
    """Write random weights, positions included, as a checkpoint."""
    torch.manual_seed(0)
    sam = build()
    for name, p in sam.named_parameters():
        if "pos" in name:
            torch.nn.init.normal_(p, std=0.2)
    torch.save(sam.state_dict(), path)
    return path


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


def build_shared():
    """The encoder of `tiny_encoder` with a grid of 6x6, and a decoder as narrow; weights as PyTorch starts them."""
    return whole(tiny_encoder(image=(96, 96)), 8)


def save_shared(path):
    """Write it as a checkpoint; its encoder traces like `tiny_encoder`, so that both share the traces of a run."""
    torch.save(build_shared().state_dict(), path)
    return path
