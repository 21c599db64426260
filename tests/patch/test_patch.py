"""Patching: merged attention is SAM's attention, and a patch leaves nothing behind."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import torch
from conftest import tiny_encoder
from segment_anything.modeling.image_encoder import Attention, add_decomposed_rel_pos

from structsam_export.errors import UsageError
from structsam_export.hosts import host_of
from structsam_export.hosts.segment_anything import Attention as AttentionView
from structsam_export.methods import make_method
from structsam_export.methods.base import MergeMethod
from structsam_export.methods.plan import MergePlan
from structsam_export.patch import apply_patch, patched, recording, remove_patch, resolve_layers
from structsam_export.patch.attention import attention

HALF = make_method("structsam", 0.5)
SHAPES = {
    "pads": {"image": (96, 96)},
    "four heads of 12": {"image": (96, 96), "heads": 4, "dim": 48},
    "odd windows": {"image": (80, 80), "patch": 8, "window": 3, "heads": 1},
    "one window": {"image": (64, 64), "window": 4, "global_layers": ()},
    "all global": {"image": (112, 112), "global_layers": (0, 1, 2)},
}


@dataclass(frozen=True)
class Shuffle(MergeMethod):
    """Keeps every token but lists them in another order: a plan that must not change anything."""

    NAME = "shuffle"

    def removed(self, layout):
        return 1  # anything but 0, or the blocks stay stock

    def plan(self, tokens):
        B = tokens.features.shape[0] * tokens.grid.window_counts[0] * tokens.grid.window_counts[1]
        order = torch.rand(B, tokens.grid.tokens, generator=torch.Generator().manual_seed(0)).argsort(1)
        return MergePlan(order, order.argsort(1), order[:, :0], 0, reduce="replace")


def image_for(encoder, batch=1):
    h, w = encoder.pos_embed.shape[1:3]
    patch = encoder.patch_embed.proj.kernel_size[0]
    return torch.randn(batch, 3, h * patch, w * patch, generator=torch.Generator().manual_seed(1))


def snapshot(encoder):
    """All that identifies a stock encoder: classes, own attributes, parameters."""
    return (
        [type(module) for module in encoder.modules()],
        [sorted(vars(module)) for module in encoder.modules()],
        {name: value.clone() for name, value in encoder.state_dict().items()},
    )


def assert_unchanged(encoder, before):
    classes, attributes, weights = snapshot(encoder)
    assert classes == before[0]
    assert attributes == before[1]
    assert list(weights) == list(before[2])
    assert all(torch.equal(weights[name], value) for name, value in before[2].items())


def merging(encoder):
    return [i for i, block in enumerate(encoder.blocks) if type(block).__name__ != "Block"]


def test_apply_and_remove_is_the_identity(encoder):
    x, before = image_for(encoder), snapshot(encoder)
    dense = encoder(x)
    assert apply_patch(encoder, HALF, range(3)) is encoder
    assert merging(encoder) == [0, 1, 2]
    assert list(encoder.state_dict()) == list(before[2])
    assert not torch.allclose(encoder(x), dense, atol=1e-3)
    assert remove_patch(encoder) is encoder
    assert_unchanged(encoder, before)
    assert torch.equal(encoder(x), dense)


def test_a_patched_block_is_still_a_block(encoder):
    stock = type(encoder.blocks[0])
    apply_patch(encoder, HALF, [0])
    assert isinstance(encoder.blocks[0], stock)


def test_applying_twice_is_applying_once(encoder):
    x, before = image_for(encoder), snapshot(encoder)
    once = apply_patch(encoder, HALF, range(3))(x)
    twice = apply_patch(encoder, HALF, range(3))(x)
    assert torch.equal(once, twice)
    assert_unchanged(remove_patch(encoder), before)


def test_another_method_replaces_the_first(encoder):
    x, before = image_for(encoder), snapshot(encoder)
    other = make_method("structsam", 0.25, "bsm")
    alone = apply_patch(tiny_encoder(image=(96, 96)), other, [1])(x)
    apply_patch(encoder, HALF, range(3))
    apply_patch(encoder, other, [1])
    assert merging(encoder) == [1]
    assert torch.equal(encoder(x), alone)
    assert_unchanged(remove_patch(encoder), before)


def test_remove_does_nothing_on_a_stock_encoder(encoder):
    before = snapshot(encoder)
    assert_unchanged(remove_patch(encoder), before)


def test_with_block_ends_the_patch_even_after_an_exception(encoder):
    before = snapshot(encoder)
    with patched(encoder, HALF, [0, 2]) as inside:
        assert inside is encoder
        assert merging(encoder) == [0, 2]
    assert_unchanged(encoder, before)
    with pytest.raises(ZeroDivisionError), patched(encoder, HALF, [0, 2]):
        raise ZeroDivisionError
    assert_unchanged(encoder, before)


@pytest.mark.parametrize("method", [make_method("none"), make_method("structsam", 0.0)], ids=["none", "rate 0"])
def test_removing_nothing_is_the_stock_model(encoder, method):
    x, before = image_for(encoder), snapshot(encoder)
    dense = encoder(x)
    apply_patch(encoder, method, range(3))
    assert_unchanged(encoder, before)
    assert torch.equal(encoder(x), dense)


def test_blocks_where_nothing_is_removed_stay_stock(encoder):
    """One token in ten is two cells of the whole grid and none of a 4x4 window."""
    apply_patch(encoder, make_method("structsam", 0.1), range(3))
    assert merging(encoder) == [1]


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_keeping_every_token_in_another_order_changes_nothing(shape):
    encoder = tiny_encoder(**shape)
    x = image_for(encoder, batch=2)
    dense = encoder(x)
    with patched(encoder, Shuffle(), range(3)):
        assert merging(encoder) == [0, 1, 2]
        assert torch.allclose(encoder(x), dense, atol=1e-5)


def test_a_grid_that_is_not_square():
    """Position tables of the wider side are resized for the other one, as segment_anything does."""
    encoder = tiny_encoder(image=(96, 96))
    encoder.pos_embed = torch.nn.Parameter(encoder.pos_embed[:, :5].clone(), requires_grad=False)
    x = image_for(encoder)
    assert x.shape[2:] == (80, 96)
    dense = encoder(x)
    with patched(encoder, Shuffle(), range(3)):
        assert torch.allclose(encoder(x), dense, atol=1e-5)
    with patched(encoder, HALF, range(3)), recording(encoder) as plans:
        assert encoder(x).shape == dense.shape
    assert [d.plan.slot.shape[1] for d in plans.values()] == [16, 30, 16]


@pytest.mark.parametrize("window", [4, 0])
@pytest.mark.parametrize(
    ("rate", "variant", "lossless"), [(0.75, "cell", True), (0.5, "proportional", True), (0.5, "cell", False)]
)
def test_merging_cells_of_equal_tokens_is_lossless(window, rate, variant, lossless):
    """With one colour per cell and no relative positions, merging every cell leaves attention as it is.

    Merging some does so, too, if attention counts each of them as its four tokens.
    """
    encoder = tiny_encoder(image=(96, 96), window=window or 4, global_layers=() if window else (0, 1, 2))
    for name, p in encoder.named_parameters():
        if "pos" in name:
            p.zero_()
    x = torch.randn(2, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    x = x.repeat_interleave(32, 2).repeat_interleave(32, 3)
    dense = encoder(x)
    with patched(encoder, make_method("structsam", rate, variant), range(3)):
        assert merging(encoder) == [0, 1, 2]
        assert torch.allclose(encoder(x), dense, atol=1e-5) == lossless


@pytest.mark.parametrize("variant", ["cell", "bsm"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_the_highest_rate_still_gives_finite_embeddings(shape, variant):
    encoder = tiny_encoder(**shape)
    x = image_for(encoder)
    expected = encoder(x).shape
    with patched(encoder, make_method("structsam", 0.75, variant), range(3)):
        assert merging(encoder)  # windows of 3 that hold one real row cannot merge without mixing it with pads
        out = encoder(x)
    assert out.shape == expected
    assert out.isfinite().all()


def test_images_of_a_batch_do_not_mix(encoder):
    x = image_for(encoder, batch=2)
    with patched(encoder, HALF, range(3)):
        assert torch.allclose(encoder(x), torch.cat([encoder(x[:1]), encoder(x[1:])]), atol=1e-5)


def test_a_method_sees_the_normalised_tokens_averaged_over_heads(encoder):
    seen = []

    class Spy(Shuffle):
        def plan(self, tokens):
            seen.append(tokens)
            return super().plan(tokens)

    x = image_for(encoder, batch=2)
    with patched(encoder, Spy(), [0, 1]):
        encoder(x)
    y = encoder.blocks[0].norm1(encoder.patch_embed(x) + encoder.pos_embed)
    assert torch.equal(seen[0].features, (y[..., :8] + y[..., 8:]) / 2)
    assert [(t.grid.shape, t.grid.window) for t in seen] == [((6, 6), 4), ((6, 6), 0)]


def random_attention(table=(4, 4), use_rel_pos=True, heads=2, dim=16):
    torch.manual_seed(2)
    made = Attention(dim, heads, qkv_bias=True, use_rel_pos=use_rel_pos, input_size=table if use_rel_pos else None)
    for p in made.parameters():
        torch.nn.init.normal_(p, std=0.5)
    return made.eval().requires_grad_(False)


def random_tokens(side, batch=3, dim=16):
    return torch.randn(batch, side[0] * side[1], dim, generator=torch.Generator().manual_seed(3))


def shuffled(side, batch=3):
    return torch.rand(batch, side[0] * side[1], generator=torch.Generator().manual_seed(4)).argsort(1)


def pick(x, index):
    return torch.stack([tokens[i] for tokens, i in zip(x, index)])


@pytest.mark.parametrize("table", [(4, 4), (9, 9), None], ids=["own table", "resized table", "no table"])
@pytest.mark.parametrize("side", [(4, 4), (4, 6), (5, 3)])
def test_attention_is_the_stock_one_for_tokens_in_any_order(side, table):
    attn = random_attention(side if table == (4, 4) else table, use_rel_pos=table is not None)
    x, order = random_tokens(side), shuffled(side)
    stock = attn(x.view(3, *side, 16)).view(3, -1, 16)
    assert torch.allclose(attention(AttentionView(attn), pick(x, order), order, side)[0], pick(stock, order), atol=1e-5)


def test_attention_of_some_tokens_is_the_stock_scores_of_their_places():
    """Rows and columns of the dense score matrix, relative positions included, at the kept places only."""
    side, heads, dim = (4, 6), 2, 16
    attn = random_attention((6, 6), heads=heads)
    x, pos = random_tokens(side), shuffled(side)[:, :9]
    qkv = attn.qkv(x).view(3, 24, 3, heads, -1).permute(2, 0, 3, 1, 4).reshape(3, 3 * heads, 24, -1)
    q, k, v = qkv.unbind(0)
    scores = (q * attn.scale) @ k.transpose(1, 2)
    scores = add_decomposed_rel_pos(scores, q, attn.rel_pos_h, attn.rel_pos_w, side, side)
    at = pos.repeat_interleave(heads, 0)
    some = torch.stack([s[i][:, i] for s, i in zip(scores, at)])
    y = (some.softmax(-1) @ pick(v, at)).view(3, heads, 9, -1).transpose(1, 2).reshape(3, 9, dim)
    assert torch.allclose(attention(AttentionView(attn), pick(x, pos), pos, side)[0], attn.proj(y), atol=1e-5)


@pytest.mark.parametrize("table", [(4, 6), None], ids=["table", "no table"])
def test_a_token_of_some_size_counts_as_so_many_tokens(table):
    side = (4, 6)
    attn = AttentionView(random_attention(table, use_rel_pos=table is not None))
    x, pos = random_tokens(side), shuffled(side)[:, :9]
    sizes = torch.tensor([1, 4, 1, 2, 1, 1, 3, 1, 1])
    repeated = torch.arange(9).repeat_interleave(sizes)
    slots = pick(x, pos)
    found = attention(attn, slots, pos, side, sizes.float()[None])[0]
    many = attention(attn, slots[:, repeated], pos[:, repeated], side)[0]
    assert torch.allclose(found[:, repeated], many, atol=1e-5)
    assert not torch.allclose(found, attention(attn, slots, pos, side)[0], atol=1e-3)


def test_recording_gives_one_plan_per_merging_layer(encoder):
    x = image_for(encoder, batch=2)
    apply_patch(encoder, HALF, [0, 1])
    silent = snapshot(encoder)
    with recording(encoder) as plans:
        encoder(x)
    assert_unchanged(encoder, silent)
    assert list(plans) == ["plan.0", "plan.1"]
    assert plans["plan.0"].plan.pos.shape == (2 * 4, 16 - 6)  # four windows of 4x4, two cells merged in each
    assert plans["plan.1"].plan.pos.shape == (2, 36 - 18)
    seen = plans["plan.1"]
    encoder(x)
    assert plans["plan.1"] is seen  # outside the block nothing is recorded


def test_recording_ends_after_an_exception(encoder):
    apply_patch(encoder, HALF, [0])
    silent = snapshot(encoder)
    with pytest.raises(ZeroDivisionError), recording(encoder):
        raise ZeroDivisionError
    assert_unchanged(encoder, silent)


def test_recording_a_stock_encoder_gives_nothing(encoder):
    with recording(encoder) as plans:
        encoder(image_for(encoder))
    assert plans == {}


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ("all", tuple(range(12))),
        ("last5", (7, 8, 9, 10, 11)),
        ("global", (2, 5, 8, 11)),
        ("0", (0,)),
        ("3,0", (0, 3)),
        ("0, 3 ,6-8,7", (0, 3, 6, 7, 8)),
        ("11-11", (11,)),
    ],
)
def test_layers_by_name_and_by_number(spec, expected):
    assert resolve_layers(spec, 12, (2, 5, 8, 11)) == expected


def test_last5_of_a_short_encoder_is_all_of_it():
    assert resolve_layers("last5", 3, ()) == (0, 1, 2)


@pytest.mark.parametrize("spec", ["", "some", "1,", "1;2", "-1", "2-x", "1.5"])
def test_layers_that_cannot_be_read(spec):
    with pytest.raises(UsageError, match="Cannot read layers .* Pass all, last5, global or a list"):
        resolve_layers(spec, 12, ())


@pytest.mark.parametrize("spec", ["12", "0,12,40", "10-14"])
def test_a_layer_the_encoder_does_not_have(spec):
    with pytest.raises(UsageError, match="Unknown layer 12: this encoder has blocks 0 to 11"):
        resolve_layers(spec, 12, ())


@pytest.mark.parametrize("spec", ["8-6", "3-", "²"])
def test_ranges_that_say_nothing(spec):
    with pytest.raises(UsageError, match="Cannot read layers"):
        resolve_layers(spec, 12, ())


def test_a_layer_given_twice(encoder):
    before = snapshot(encoder)
    apply_patch(encoder, HALF, [0, 0])
    assert_unchanged(remove_patch(encoder), before)


def test_an_encoder_without_position_embedding(encoder):
    encoder.pos_embed = None
    assert merging(apply_patch(encoder, HALF, [0])) == [0]


def test_a_subclass_has_the_same_host(encoder):
    stock = host_of(encoder)
    encoder.__class__ = type("Changed", (type(encoder),), {})
    assert type(host_of(encoder)) is type(stock)


def test_an_encoder_no_host_knows():
    for action in (host_of, remove_patch, lambda encoder: apply_patch(encoder, HALF, [0])):
        with pytest.raises(UsageError, match="Unsupported encoder torch.*Linear.*ImageEncoderViT"):
            action(torch.nn.Linear(1, 1))
