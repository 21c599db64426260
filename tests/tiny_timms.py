"""Tiny models of timm's own classes with random weights, beside which ours are put."""

from __future__ import annotations

import copy

import torch
from timm.models.eva import Eva
from timm.models.vision_transformer import VisionTransformer

from structsam_export.models.timm_models import adopt

SIZES = {"img_size": 96, "patch_size": 16, "embed_dim": 32, "depth": 4, "num_heads": 2, "mlp_ratio": 2.0}
ROPE = {"use_rot_pos_emb": True, "use_abs_pos_emb": False, "rope_type": "dinov3", "rope_rotate_half": True}
ROPE["rope_temperature"] = 100.0  # as DINOv3 has it


def random(model):
    """Weights large enough that every part of a model shows in its output."""
    generator = torch.Generator().manual_seed(0)
    for p in model.parameters():
        p.data = torch.randn(p.shape, generator=generator) * (0.5 / max(p.shape[-1], 4) ** 0.5 if p.ndim > 1 else 0.2)
        p.data += p.ndim == 1
    return model.eval().requires_grad_(False)


def deit():
    """A class token, absolute positions, a classifier of 7."""
    return random(VisionTransformer(**SIZES, num_classes=7))


def registers():
    """A class token, two registers, LayerScale, normalised queries and keys, mean pooling, a classifier of 7."""
    more = {"reg_tokens": 2, "init_values": 0.5, "qk_norm": True, "global_pool": "avg"}
    return random(VisionTransformer(**SIZES, **more, num_classes=7))


def dinov3():
    """A class token, four registers, rotations in place of positions, LayerScale, no classifier."""
    more = {"num_reg_tokens": 4, "init_values": 0.5, "dynamic_img_size": True, "global_pool": "token"}
    return random(Eva(**SIZES, **ROPE, **more, num_classes=0))


def eva02():
    """A class token, absolute positions and rotations, gated MLPs with a norm, Linears apart, a classifier of 7."""
    more = {"swiglu_mlp": True, "scale_mlp": True, "qkv_fused": False, "use_rot_pos_emb": True}
    return random(Eva(**SIZES, **more, dynamic_img_size=True, num_classes=7))


MODELS = {"deit": deit, "registers": registers, "dinov3": dinov3, "eva02": eva02}


def pair(name):
    """timm's own model, and the same as ours."""
    stock = MODELS[name]()
    return stock, adopt(copy.deepcopy(stock))


def classifier():
    """For the contract suite: no leading tokens."""
    sizes = {**SIZES, "depth": 3, "class_token": False, "global_pool": "avg"}
    return adopt(random(VisionTransformer(**sizes, num_classes=5)))


def backbone():
    """For the contract suite: no leading tokens, no rotations."""
    sizes = {**SIZES, "depth": 3, "class_token": False, "global_pool": "avg"}
    return adopt(random(Eva(**sizes, num_classes=0)))
