"""EfficientSAM's checkpoints as its own code (github.com/yformer/EfficientSAM, d525f62) has them: names and shapes."""

from __future__ import annotations

from zlib import crc32

import numpy as np
import torch

# Of the tests: 128 wide, 3 blocks, patches of 64 px (16 x 16 tokens of 1024 px), 32 channels.
TINY = {"dim": 128, "depth": 3, "patch": 64, "channels": 32, "mlp": 64, "hidden": 32, "pretrained": 4}


def linear(name, out, channels):
    return {f"{name}.weight": (out, channels), f"{name}.bias": (out,)}


def norm(name, channels):
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def encoder_shapes(dim, depth, patch, channels, pretrained):
    made = {"pos_embed": (1, pretrained**2 + 1, dim), "patch_embed.proj.weight": (dim, 3, patch, patch)}
    made["patch_embed.proj.bias"] = (dim,)
    for i in range(depth):
        block = f"blocks.{i}"
        made |= norm(f"{block}.norm1", dim) | norm(f"{block}.norm2", dim)
        made |= linear(f"{block}.attn.qkv", 3 * dim, dim) | linear(f"{block}.attn.proj", dim, dim)
        made |= linear(f"{block}.mlp.fc1", 4 * dim, dim) | linear(f"{block}.mlp.fc2", dim, 4 * dim)
    made |= {"neck.0.weight": (channels, dim, 1, 1), "neck.2.weight": (channels, channels, 3, 3)}
    return made | norm("neck.1", channels) | norm("neck.3", channels)


def attention(name, channels, inner):
    made = {k: v for part in "qkv" for k, v in linear(f"{name}.{part}_proj", inner, channels).items()}
    return made | linear(f"{name}.out_proj", channels, inner)


def decoder_shapes(channels, mlp, hidden):
    made = {"iou_token.weight": (1, channels), "mask_tokens.weight": (4, channels)}
    for i in range(2):
        layer = f"transformer.layers.{i}"
        made |= attention(f"{layer}.self_attn", channels, channels)
        for cross in ("token_to_image", "image_to_token"):
            made |= attention(f"{layer}.cross_attn_{cross}", channels, channels // 2)
        made |= {k: v for j in range(1, 5) for k, v in norm(f"{layer}.norm{j}", channels).items()}
        made |= linear(f"{layer}.mlp.layers.0.0", mlp, channels) | linear(f"{layer}.mlp.fc", channels, mlp)
    made |= attention("transformer.final_attn_token_to_image", channels, channels // 2)
    made |= norm("transformer.norm_final_attn", channels)
    up, narrow = "final_output_upscaling_layers", 64 * channels // 256
    made |= {f"{up}.0.0.weight": (channels, narrow, 2, 2), f"{up}.0.0.bias": (narrow,)} | norm(f"{up}.0.1", narrow)
    made |= {f"{up}.1.0.weight": (narrow, narrow // 2, 2, 2), f"{up}.1.0.bias": (narrow // 2,)}
    heads = {f"output_hypernetworks_mlps.{i}": (channels, narrow // 2) for i in range(4)}
    for head, (inner, out) in {**heads, "iou_prediction_head": (hidden, 4)}.items():
        made |= linear(f"{head}.layers.0.0", inner, channels) | linear(f"{head}.layers.1.0", inner, inner)
        made |= linear(f"{head}.fc", out, inner)
    return made


def shapes(dim, depth=12, patch=16, channels=256, mlp=2048, hidden=256, pretrained=14):
    """Name -> shape of a whole checkpoint; the defaults are those of both published ones."""
    prompts = ("invalid_points", "point_embeddings", "bbox_top_left_embeddings", "bbox_bottom_right_embeddings")
    parts = {
        "image_encoder": encoder_shapes(dim, depth, patch, channels, pretrained),
        "prompt_encoder": {f"{name}.weight": (1, channels) for name in prompts}
        | {"pe_layer.positional_encoding_gaussian_matrix": (2, channels // 2)},
        "mask_decoder": decoder_shapes(channels, mlp, hidden),
    }
    return {f"{part}.{name}": shape for part, found in parts.items() for name, shape in found.items()}


def weights(**sizes):
    """A state dict of random numbers that depend on names alone: none can be swapped or left out unseen."""
    return {name: tensor(name, shape) for name, shape in shapes(**sizes).items()}


def tensor(name, shape):
    values = np.random.default_rng(crc32(name.encode())).normal(size=shape)
    if "gaussian" in name:
        scale = 1.0
    elif len(shape) == 1:
        scale = 0.2
    elif "token" in name or "pos_embed" in name or "prompt_encoder" in name:
        scale = 0.5
    else:
        scale = 1.5 / np.sqrt(np.prod(shape[1:]))
    norms = "norm" in name or ".neck.1." in name or ".neck.3." in name or "upscaling_layers.0.1." in name
    return torch.tensor(scale * values + (norms and name.endswith("weight")), dtype=torch.float32)


def photo():
    """(90, 120, 3) uint8: smooth colours and a disc."""
    y, x = np.mgrid[:90, :120]
    disc = (x - 70) ** 2 + (y - 40) ** 2 < 600
    return np.stack([2 * x, 2 * y + 40 * disc, 255 * disc], -1).astype(np.uint8)
