from __future__ import annotations

import json

import pytest
import torch

from structsam_export.errors import UsageError
from structsam_export.hosts import geometry_of


@pytest.fixture(scope="module")
def vit_b():
    """SAM ViT-B without storage."""
    from segment_anything import sam_model_registry

    with torch.device("meta"):
        return geometry_of(sam_model_registry["vit_b"](checkpoint=None).image_encoder)


def test_vit_b_as_published(vit_b):
    assert (vit_b.image_size, vit_b.patch_size, vit_b.grid) == (1024, 16, (64, 64))
    assert (vit_b.dim, vit_b.depth, vit_b.heads, vit_b.head_dim) == (768, 12, 12, 64)
    assert (vit_b.mlp_dim, vit_b.out_channels) == (3072, 256)
    assert vit_b.windows == (14, 14, 0, 14, 14, 0, 14, 14, 0, 14, 14, 0)
    assert vit_b.global_layers == (2, 5, 8, 11)


def test_vit_b_attention_calls(vit_b):
    assert vit_b.tokens_global == vit_b.window_grid(2).tokens == 4096
    assert (vit_b.window_grid(0).tokens, vit_b.window_grid(0).window_shape, vit_b.window_grid(2).window_shape) == (
        196,
        (14, 14),
        (64, 64),
    )
    # 64 pads to 70 = 5 * 14, which adds 804 tokens.
    assert (vit_b.window_grid(0).windows, vit_b.window_grid(2).windows) == (25, 1)
    assert vit_b.window_grid(0).windows * vit_b.window_grid(0).tokens - vit_b.tokens_global == 804


def test_attention_calls_are_those_of_a_forward_pass(encoder):
    seen = []
    for block in encoder.blocks:
        block.attn.register_forward_pre_hook(lambda _, args: seen.append(tuple(args[0].shape[:3])))
    encoder(torch.zeros(1, 3, encoder.img_size, encoder.img_size))
    geometry = geometry_of(encoder)
    assert seen == [
        (geometry.window_grid(i).windows, *geometry.window_grid(i).window_shape) for i in range(geometry.depth)
    ]
    assert seen[0] == (4, 4, 4)  # 6x6 tokens in windows of 4


def test_a_grid_that_is_not_square(encoder):
    encoder.pos_embed = torch.nn.Parameter(torch.zeros(1, 6, 9, 16))
    geometry = geometry_of(encoder)
    assert (geometry.grid, geometry.tokens_global, geometry.window_grid(0).windows) == ((6, 9), 54, 6)


def test_without_position_embedding(encoder):
    encoder.pos_embed = None
    assert geometry_of(encoder).grid == (6, 6)


def test_a_subclass_is_still_the_host(encoder):
    stock = geometry_of(encoder)
    encoder.__class__ = type("Changed", (type(encoder),), {})
    assert geometry_of(encoder) == stock


def test_to_dict_survives_json(vit_b):
    assert json.loads(json.dumps(vit_b.to_dict())) == vit_b.to_dict()
    assert vit_b.to_dict()["grid"] == [64, 64]


def test_another_encoder_is_refused():
    with pytest.raises(UsageError, match="Unsupported encoder torch.*Linear"):
        geometry_of(torch.nn.Linear(2, 2))


def test_another_project_s_class_of_the_same_name_is_refused():
    class ImageEncoderViT(torch.nn.Module):
        blocks = (torch.nn.Linear(2, 2),)

    with pytest.raises(UsageError, match="not its layout"):
        geometry_of(ImageEncoderViT())
