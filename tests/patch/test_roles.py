"""What each block is told to do, and that patched encoders do it: mixed methods, MLPs, fewer keys, a smaller grid."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass

import pytest
import torch
from conftest import tiny_encoder
from segment_anything.modeling.image_encoder import add_decomposed_rel_pos, window_partition, window_unpartition

from structsam_export.errors import UsageError
from structsam_export.geometry import GEOMETRIES, EncoderGeometry
from structsam_export.hosts import geometry_of
from structsam_export.hosts.segment_anything import Attention as AttentionView
from structsam_export.methods import importance, make_method
from structsam_export.methods.base import MergeMethod
from structsam_export.methods.cubist import GridPlan
from structsam_export.methods.importance import cell_rank
from structsam_export.methods.mlp import KeepPlan, MergedMLP, ResidualConsistency
from structsam_export.methods.plan import MergePlan, SplitPlan
from structsam_export.methods.sparsesam import KeyPlan, SparseSAM
from structsam_export.patch import apply_patch, patched, prompted, recording, reduced_blocks, remove_patch, roles_of
from structsam_export.patch.attention import attention
from structsam_export.patch.encoder import patch_of
from structsam_export.patch.stripe import all_keys
from structsam_export.roles import assign
from structsam_export.tokens import WindowGrid
from structsam_export.trace import decision_names

B = GEOMETRIES["vit_b"]  # windows of 14, blocks 2, 5, 8, 11 global
LOCAL = EncoderGeometry(96, 16, (6, 6), 16, 3, 2, 32, 8, (4, 4, 4))
GLOBAL, DEPTH = (1, 3), 5
HALF, TOME = make_method("structsam", 0.5), make_method("tome", 0.25)
KEEP = ResidualConsistency(0.5)
# Everything a block can be asked to do, alone and together: methods by block, MLP policy.
ALL = range(DEPTH)
KINDS = {
    "merging": (dict.fromkeys(ALL, HALF), None),
    "merging, two methods": ({0: HALF, 1: TOME, 3: make_method("structsam", 0.75)}, None),
    "merging, merged MLP": (dict.fromkeys(ALL, TOME), MergedMLP()),
    "merging, fewer MLPs": (dict.fromkeys(ALL, HALF), KEEP),
    "fewer MLPs": ({}, KEEP),
    "fixed keys": (dict.fromkeys(ALL, SparseSAM(0.5)), None),
    "ranked keys": (dict.fromkeys(ALL, SparseSAM(0.6)), None),
    "ranked keys and tiles": (dict.fromkeys(ALL, SparseSAM(0.6, "diagonal")), None),
    "ranked keys, fewer MLPs": (dict.fromkeys(ALL, SparseSAM(0.6)), KEEP),
    "prompt-aware": (dict.fromkeys(ALL, make_method("structsam", 0.5, prompt_aware=True)), None),
    "prompt-aware, merged MLP": (dict.fromkeys(ALL, make_method("structsam", 0.5, prompt_aware=True)), MergedMLP()),
    "smaller windows": (dict.fromkeys(range(2, DEPTH), make_method("cubist", 0.5)), None),
    "smaller grid": (dict.fromkeys(range(2, DEPTH), make_method("cubist", 0.5, "global")), None),
    "smaller windows, fewer MLPs": (dict.fromkeys(range(2, DEPTH), make_method("cubist", 0.5)), KEEP),
}
each_kind = pytest.mark.parametrize(("blocks", "mlp"), KINDS.values(), ids=KINDS)


@dataclass(frozen=True)
class Relist(MergeMethod):
    """Keeps every token, in another order: a plan that must not change anything."""

    NAME = "relist"

    def removed(self, layout):
        return 1  # anything but 0, or the blocks stay stock

    def plan(self, tokens):
        images = tokens.features.shape[0]
        order = torch.arange(tokens.grid.tokens).flip(0).expand(images * tokens.grid.windows, -1)
        return MergePlan(order, order.argsort(1), order[:, :0], 0, reduce="replace")


def deep_encoder(**options):
    """6x6 tokens, windows of 4 (so 6 -> 8 with pads), blocks 1 and 3 of five global."""
    return tiny_encoder(**{"image": (96, 96), "depth": DEPTH, "global_layers": GLOBAL, **options})


def image_for(encoder, batch=2):
    h, w = encoder.pos_embed.shape[1:3]
    patch = encoder.patch_embed.proj.kernel_size[0]
    return torch.randn(batch, 3, h * patch, w * patch, generator=torch.Generator().manual_seed(1))


def snapshot(encoder):
    """All that identifies a stock encoder: classes, attributes with their plain values, parameters."""
    plain = (bool, int, float, str, tuple)
    return (
        [type(module) for module in encoder.modules()],
        [{k: v if isinstance(v, plain) else None for k, v in vars(m).items()} for m in encoder.modules()],
        {name: value.clone() for name, value in encoder.state_dict().items()},
    )


def assert_unchanged(encoder, before):
    classes, attributes, weights = snapshot(encoder)
    assert (classes, attributes) == before[:2]
    assert all(torch.equal(weights[name], value) for name, value in before[2].items())


def changed(encoder):
    return [i for i, block in enumerate(encoder.blocks) if type(block).__name__ != "Block"]


def windows(encoder):
    """Side of the windows that each block cuts, whether patched or not."""
    found = roles_of(encoder)
    return [found[i].grid.window if i in found else block.window_size for i, block in enumerate(encoder.blocks)]


def passes(encoder, x):
    """Input and output of every block in one forward pass."""
    seen, handles = {}, []
    for i, block in enumerate(encoder.blocks):
        keep = lambda _, given, made, i=i: seen.__setitem__(i, (given[0].clone(), made.clone()))  # noqa: E731
        handles.append(block.register_forward_hook(keep))
    try:
        encoder(x)
    finally:
        for handle in handles:
            handle.remove()
    return seen


def recorded(encoder, x):
    with recording(encoder) as decisions:
        encoder(x)
    return decisions


def roles(blocks, mlp=None, geometry=B):
    return assign(geometry, blocks, mlp)


# Who gets which role.


def test_blocks_where_nothing_is_removed_have_no_role():
    assert roles({}) == {}
    assert roles(dict.fromkeys(range(12), make_method("none"))) == {}
    assert roles({0: make_method("structsam", 0.0), 3: HALF}).keys() == {3}
    assert roles(dict.fromkeys(range(12), SparseSAM(0.5))).keys() == {2, 5, 8, 11}


def test_a_role_knows_its_block():
    found = roles({0: HALF, 2: TOME})
    assert [(r.index, r.method) for r in found.values()] == [(0, HALF), (2, TOME)]
    assert [r.grid for r in found.values()] == [WindowGrid((64, 64), 14), WindowGrid((64, 64))]
    assert all(r.reduced for r in found.values())


@pytest.mark.parametrize(
    ("rate", "layers", "ranking", "decisions"),
    [
        (0.5, range(12), None, []),
        (0.6, range(12), 2, [2, 5, 8, 11]),
        (0.6, (8, 11), 2, [8, 11]),  # ranked by the first global block all the same
        (0.6, (0, 1), None, []),
    ],
)
def test_keys_are_ranked_once_by_the_first_global_block(rate, layers, ranking, decisions):
    found = roles(dict.fromkeys(layers, SparseSAM(rate)))
    assert [i for i, r in found.items() if r.rank] == ([] if ranking is None else [ranking])
    assert [name for _, r in sorted(found.items()) for name, _ in r.decisions] == [f"plan.{i}" for i in decisions]


def test_residual_consistency_plans_in_the_first_global_block_for_the_windows_after_it():
    found = roles({}, KEEP)
    assert [i for i, r in found.items() if r.decisions] == [i for i, r in found.items() if r.rank] == [2]
    assert sorted(i for i, r in found.items() if r.mlp == KEEP) == [3, 4, 6, 7, 9, 10]
    assert found[2].decisions == (("mlp.2", KeepPlan),)
    assert not any(r.reduced for r in found.values())


def test_the_merged_mlp_follows_each_merging_block():
    found = roles({0: HALF, 2: HALF, 4: make_method("structsam", 0.0)}, MergedMLP())
    assert {i: r.mlp for i, r in found.items()} == {0: MergedMLP(), 2: MergedMLP()}


def test_decisions_by_name_and_kind():
    assert roles({0: HALF})[0].decisions == (("plan.0", MergePlan),)
    aware = make_method("structsam", 0.5, prompt_aware=True)
    found = roles({0: aware, 2: aware}).values()
    assert [r.decisions for r in found] == [(("plan.0", SplitPlan),), (("plan.2", MergePlan),)]
    both = roles({2: SparseSAM(0.6)}, KEEP)
    assert both[2].decisions == (("plan.2", KeyPlan), ("mlp.2", KeepPlan))
    assert roles(dict.fromkeys(range(9, 12), make_method("cubist", 0.5)))[9].decisions == (("grid.9", GridPlan),)
    parts = [MergePlan.PARTS, SplitPlan.PARTS, KeyPlan.PARTS, KeepPlan.PARTS, GridPlan.PARTS]
    merging, grid = ("pos", "slot", "sources"), ("rows", "columns", "row_values", "column_values")
    assert parts == [merging, ("order", *merging), ("keys",), ("keep", "slot"), grid]


@each_kind
def test_a_forward_pass_takes_the_decisions_that_were_announced(blocks, mlp):
    encoder = deep_encoder()
    apply_patch(encoder, blocks, mlp=mlp)
    taken = recorded(encoder, image_for(encoder))
    assert sorted(f"{name}.{part}" for name, d in taken.items() for part in d.tensors) == sorted(
        decision_names(encoder)
    )
    assert all(t.dtype == torch.int64 for d in taken.values() for t in d.tensors.values())


@each_kind
def test_a_decision_can_be_taken_again(blocks, mlp):
    """The same without noise, and another one with much of it."""
    encoder = deep_encoder()
    apply_patch(encoder, blocks, mlp=mlp)
    for name, decision in recorded(encoder, image_for(encoder)).items():
        same, other = decision.again(0.0, 0), decision.again(10.0, 0)
        assert all(torch.equal(getattr(same, part), tensor) for part, tensor in decision.tensors.items()), name
        assert not all(torch.equal(getattr(other, part), tensor) for part, tensor in decision.tensors.items()), name


@pytest.mark.parametrize("method", [SparseSAM(0.5), make_method("cubist", 0.5)], ids=["keys", "grid"])
def test_a_merged_mlp_without_merging_is_refused(method):
    for blocks in ({}, dict.fromkeys(range(12), method)):
        with pytest.raises(UsageError, match="--mlp merge needs a method that merges tokens"):
            roles(blocks, MergedMLP())


@pytest.mark.parametrize("blocks", [{}, {0: HALF}], ids=["no method", "merging"])
def test_ranking_without_a_global_block_is_refused(blocks):
    with pytest.raises(UsageError, match="keys of a global attention block, and this encoder has none"):
        roles(blocks, KEEP, LOCAL)
    assert roles({0: SparseSAM(0.6)}, None, LOCAL) == {}


@pytest.mark.parametrize("layers", [(0,), (0, 1, 2), (2, 4), (1, 2, 4), (3,)])
def test_a_grid_that_shrinks_for_some_blocks_only_is_refused(layers):
    encoder = deep_encoder()
    before = snapshot(encoder)
    with pytest.raises(UsageError, match=f"'cubist' reduces the grid once.*--layers {layers[0]}-4"):
        apply_patch(encoder, make_method("cubist", 0.5), layers)
    assert_unchanged(encoder, before)


def test_two_sizes_of_a_smaller_grid_are_refused():
    with pytest.raises(UsageError, match="one rate"):
        roles({10: make_method("cubist", 0.5), 11: make_method("cubist", 0.3)})


# One method for each block.


def test_each_block_follows_its_own_method():
    encoder = deep_encoder()
    x, quarter = image_for(encoder), make_method("structsam", 0.25)
    apply_patch(encoder, {0: HALF, 1: TOME, 3: quarter})
    assert changed(encoder) == [0, 1, 3]
    plans = {name: d.plan for name, d in recorded(encoder, x).items()}
    assert {name: p.pos.shape[1] for name, p in plans.items()} == {"plan.0": 16 - 6, "plan.1": 36 - 9, "plan.3": 36 - 9}
    assert not torch.equal(plans["plan.1"].destination(), plans["plan.3"].destination())


def test_a_mapping_with_one_method_is_that_method_on_these_layers():
    encoder = deep_encoder()
    x = image_for(encoder)
    by_layers = apply_patch(encoder, HALF, [0, 3])(x)
    assert torch.equal(apply_patch(encoder, {0: HALF, 3: HALF})(x), by_layers)


def test_blocks_with_two_methods_are_those_of_each_alone():
    """Block 1 sees what block 0 leaves, whoever comes later."""
    encoder = deep_encoder()
    x = image_for(encoder)
    both = passes(apply_patch(encoder, {0: HALF, 1: TOME}), x)
    first = passes(apply_patch(encoder, {0: HALF}), x)
    assert torch.equal(both[0][1], first[0][1])
    second = passes(apply_patch(encoder, {1: TOME}), x)
    assert not torch.equal(both[1][1], second[1][1])
    assert torch.equal(encoder.blocks[1](both[1][0]), both[1][1])


# The MLP on merged tokens.


def merged_mean(plan, x):
    """Tokens (B, N, D) -> slots (B, n, D), a mean for each group, by loops."""
    made = []
    for tokens, slots in zip(x, plan.slot):
        made.append(torch.stack([tokens[slots == j].mean(0) for j in range(plan.kept)]))
    return torch.stack(made)


def spread(plan, y):
    return torch.stack([slots[index] for slots, index in zip(y, plan.slot)])


def by_windows(x, size, compute):
    """compute((B, N, D)) on windows as `segment_anything` cuts them, or on the whole grid."""
    grid = tuple(x.shape[1:3])
    cut, padded = window_partition(x, size) if size else (x, grid)
    out = compute(cut.flatten(1, 2)).view(cut.shape)
    return window_unpartition(out, size, padded, grid) if size else out


def merging_block(block, plan, x, window):
    """A block whose attention and MLP run on merged tokens, written from the description."""
    side = (window, window) if window else tuple(x.shape[1:3])

    def attend(y):
        return spread(plan, attention(AttentionView(block.attn), merged_mean(plan, y), plan.pos, side)[0])

    x = x + by_windows(block.norm1(x), window, attend)
    return x + by_windows(x, window, lambda y: spread(plan, block.mlp(block.norm2(merged_mean(plan, y)))))


@pytest.mark.parametrize("method", [HALF, TOME, make_method("pitome", 0.5)], ids=lambda m: m.NAME)
@pytest.mark.parametrize("layer", [0, 1], ids=["windows with pads", "global"])
def test_a_merged_mlp_runs_on_merged_tokens(layer, method):
    encoder = deep_encoder()
    x = image_for(encoder)
    apply_patch(encoder, {layer: method}, mlp=MergedMLP())
    plan = recorded(encoder, x)[f"plan.{layer}"].plan
    given, made = passes(encoder, x)[layer]
    want = merging_block(encoder.blocks[layer], plan, given, 0 if layer in GLOBAL else 4)
    assert torch.allclose(made, want, atol=1e-5)
    dense = passes(apply_patch(encoder, {layer: method}), x)[layer][1]
    assert not torch.allclose(made, dense, atol=1e-2)


def test_a_merged_mlp_has_merged_rows():
    encoder = deep_encoder()
    seen = {}
    for i in (0, 1, 2):
        encoder.blocks[i].mlp.register_forward_hook(lambda _, given, __, i=i: seen.__setitem__(i, given[0].shape[:-1]))
    apply_patch(encoder, {0: HALF, 1: HALF}, mlp=MergedMLP())(image_for(encoder))
    # In windows of 4x4 on 6x6 tokens, 10 slots each: one window without pads, two with 2 slots of them, one with 6.
    assert seen == {0: (2 * (10 + 8 + 8 + 4),), 1: (2, 36 - 18), 2: (2, 6, 6)}


def test_a_merged_mlp_that_merges_nothing_is_the_dense_one():
    encoder = deep_encoder()
    x, before = image_for(encoder), snapshot(encoder)
    dense = encoder(x)
    with patched(encoder, Relist(), ALL, mlp=MergedMLP()):
        assert changed(encoder) == list(ALL)
        assert torch.allclose(encoder(x), dense, atol=1e-5)
    apply_patch(encoder, make_method("structsam", 0.0), ALL, mlp=MergedMLP())
    assert_unchanged(encoder, before)


@pytest.mark.parametrize("grid", [(8, 4), (4, 8), (6, 6)], ids=["one column of windows", "one row", "pads"])
@pytest.mark.parametrize("mlp", [None, MergedMLP()], ids=["dense MLP", "merged MLP"])
def test_windows_that_stay_dense_are_stock_windows(grid, mlp):
    """Prompt-aware StructSAM in block 0: windows of the plan's dense calls come out as stock, to rounding."""
    encoder = tiny_encoder(image=(128, 128))
    encoder.pos_embed = torch.nn.Parameter(encoder.pos_embed[:, : grid[0], : grid[1]].clone(), requires_grad=False)
    x, method = image_for(encoder), make_method("structsam", 0.5, prompt_aware=True)
    stock, layout = passes(encoder, x)[0][1], WindowGrid(grid, 4)
    apply_patch(encoder, {0: method}, mlp=mlp)
    made, plan = passes(encoder, x)[0][1], recorded(encoder, x)["plan.0"].plan
    assert made.shape == stock.shape
    calls, expected = (layout.partition(t).view(2, layout.windows, -1) for t in (made, stock))
    for image, order in enumerate(plan.order.tolist()):
        same = [torch.allclose(calls[image, i], expected[image, i], atol=1e-5) for i in order]
        assert same == [i < plan.dense for i in range(layout.windows)]


# The MLP on some tokens.


def block_without_mlp(blocks, mlp, x, index):
    """Output of a block whose MLP adds nothing: what its attention leaves."""
    encoder = deep_encoder()
    for p in encoder.blocks[index].mlp.lin2.parameters():
        p.zero_()
    return passes(apply_patch(encoder, blocks, mlp=mlp), x)[index][1]


WITH = {
    "none": {},
    "structsam": dict.fromkeys(ALL, HALF),
    "tome": dict.fromkeys(ALL, TOME),
    "sparsesam": dict.fromkeys(ALL, SparseSAM(0.6)),
    "sparsesam, fixed keys": dict.fromkeys(ALL, SparseSAM(0.5)),
}


@pytest.mark.parametrize("blocks", WITH.values(), ids=WITH)
def test_only_kept_tokens_get_an_update(blocks):
    """In windowed blocks after the first global one; all others update every token."""
    encoder = deep_encoder()
    x = image_for(encoder)
    apply_patch(encoder, blocks, mlp=KEEP)
    keep = recorded(encoder, x)["mlp.1"].plan.keep
    assert keep.shape == (2, 16)  # 18 of 36 tokens are four and a half cells; Python rounds halves to even
    kept = torch.zeros(2, 36, dtype=torch.bool).scatter(1, keep, torch.ones_like(keep, dtype=torch.bool)).view(2, 6, 6)
    for index, (_, made) in passes(encoder, x).items():
        before, block = block_without_mlp(blocks, KEEP, x, index), encoder.blocks[index]
        update = block.mlp(block.norm2(before))
        if index in (2, 4):
            assert torch.equal(made[~kept], before[~kept])
            assert torch.allclose(made[kept], (before + update)[kept], atol=1e-5)
            assert update[kept].abs().mean() > 0.05
        else:
            assert torch.allclose(made, before + update, atol=1e-5)


def test_fewer_mlps_leave_earlier_blocks_stock_to_the_bit():
    encoder = deep_encoder()
    x = image_for(encoder)
    stock = passes(encoder, x)
    found = passes(apply_patch(encoder, {}, mlp=KEEP), x)
    assert changed(encoder) == [1, 2, 4]
    assert all(torch.equal(found[i][1], stock[i][1]) for i in (0, 1))
    assert all(not torch.equal(found[i][1], stock[i][1]) for i in (2, 3, 4))


def test_all_mlps_are_the_dense_model():
    encoder = deep_encoder()
    x = image_for(encoder)
    dense = encoder(x)
    with patched(encoder, {}, mlp=ResidualConsistency(1.0)):
        assert torch.allclose(encoder(x), dense, atol=1e-5)


@pytest.mark.parametrize("blocks", WITH.values(), ids=WITH)
def test_kept_tokens_are_those_of_the_first_global_blocks_keys(blocks):
    encoder = deep_encoder()
    x = image_for(encoder)
    apply_patch(encoder, blocks, mlp=KEEP)
    decisions, (given, _) = recorded(encoder, x), passes(encoder, x)[1]
    block = encoder.blocks[1]
    y = block.norm1(given)
    keys = all_keys(AttentionView(block.attn), y)
    if blocks and isinstance(blocks[1], MergeMethod):  # a merged token's key stands for all it holds
        plan = decisions["plan.1"].plan
        slots = all_keys(AttentionView(block.attn), merged_mean(plan, y.flatten(1, 2)).unsqueeze(1))
        keys = torch.stack([k[:, slot] for k, slot in zip(slots, plan.slot)])
    assert torch.equal(decisions["mlp.1"].plan.keep, KEEP.plan(cell_rank(keys, (6, 6)), (6, 6)).keep)


def test_fewer_mlps_on_an_odd_grid():
    encoder = deep_encoder(image=(80, 80))
    x = image_for(encoder)
    apply_patch(encoder, {}, mlp=ResidualConsistency(0.25))
    keep = recorded(encoder, x)["mlp.1"].plan.keep
    edge = {r * 5 + c for r in range(5) for c in range(5) if 4 in (r, c)}
    assert all(edge <= set(tokens) and len(tokens) == 9 + 8 for tokens in keep.tolist())
    assert encoder(x).isfinite().all()


def test_two_images_keep_their_own_tokens():
    encoder = deep_encoder()
    x = image_for(encoder)
    for blocks in WITH.values():
        with patched(encoder, blocks, mlp=KEEP):
            assert torch.allclose(encoder(x), torch.cat([encoder(x[:1]), encoder(x[1:])]), atol=1e-5)


# Attention to fewer keys.


def attention_to(attn, y, keys):
    """SAM's own attention over (B, H, W, D), scores of all other keys at minus infinity."""
    n_images, H, W, D = y.shape
    heads = attn.num_heads
    q, k, v = attn.qkv(y).reshape(n_images, H * W, 3, heads, -1).permute(2, 0, 3, 1, 4).flatten(1, 2).unbind(0)
    scores = add_decomposed_rel_pos((q * attn.scale) @ k.mT, q, attn.rel_pos_h, attn.rel_pos_w, (H, W), (H, W))
    hidden = torch.ones(n_images, H * W, dtype=torch.bool).scatter(1, keys, torch.zeros_like(keys, dtype=torch.bool))
    scores = scores.masked_fill(hidden.repeat_interleave(heads, 0).unsqueeze(1), -torch.inf)
    out = (scores.softmax(-1) @ v).view(n_images, heads, H, W, -1).permute(0, 2, 3, 1, 4)
    return attn.proj(out.reshape(n_images, H, W, D))


@pytest.mark.parametrize("rate", [0.5, 0.6])
def test_global_blocks_attend_to_the_chosen_keys_and_windows_stay_stock(rate):
    encoder = deep_encoder()
    x = image_for(encoder)
    apply_patch(encoder, SparseSAM(rate), ALL)
    assert changed(encoder) == list(GLOBAL)
    assert reduced_blocks(encoder) == GLOBAL
    decisions, seen = recorded(encoder, x), passes(encoder, x)
    every_second_row = torch.arange(36).view(6, 6)[::2].flatten().expand(2, -1)
    for i in GLOBAL:
        given, made = seen[i]
        block, keys = encoder.blocks[i], decisions[f"plan.{i}"].plan.keys if rate == 0.6 else every_second_row
        y = given + attention_to(block.attn, block.norm1(given), keys)
        assert torch.allclose(made, y + block.mlp(block.norm2(y)), atol=1e-5)


@pytest.mark.parametrize("rate", [0.25, 0.5, 0.75])
def test_keys_that_are_whole_quarters_are_no_decision(rate):
    encoder = deep_encoder()
    apply_patch(encoder, SparseSAM(rate), ALL)
    assert decision_names(encoder) == []
    assert recorded(encoder, image_for(encoder)) == {}


@pytest.mark.parametrize("variant", SparseSAM.VARIANTS)
def test_all_global_blocks_share_one_ranking(variant, monkeypatch):
    encoder = deep_encoder()
    x, calls = image_for(encoder), []
    monkeypatch.setattr(importance, "cell_rank", lambda keys, grid: calls.append(grid) or cell_rank(keys, grid))
    apply_patch(encoder, SparseSAM(0.6, variant), ALL, mlp=KEEP)
    decisions = recorded(encoder, x)
    assert calls == [(6, 6)]
    assert sorted(decisions) == ["mlp.1", "plan.1", "plan.3"]
    assert torch.equal(decisions["plan.1"].plan.keys, decisions["plan.3"].plan.keys)
    block, (given, _) = encoder.blocks[1], passes(encoder, x)[1]
    rank = cell_rank(all_keys(AttentionView(block.attn), block.norm1(given)), (6, 6))
    assert torch.equal(decisions["plan.3"].plan.keys, SparseSAM(0.6).plan(rank, WindowGrid((6, 6)), 2).keys)


def test_a_block_that_only_ranks_is_stock_to_the_bit():
    encoder = deep_encoder()
    x = image_for(encoder)
    stock = passes(encoder, x)
    found = passes(apply_patch(encoder, SparseSAM(0.6), [3]), x)
    assert changed(encoder) == [1, 3]
    assert reduced_blocks(encoder) == (3,)
    assert all(torch.equal(found[i][1], stock[i][1]) for i in (0, 1, 2))
    assert not torch.equal(found[3][1], stock[3][1])


def test_keys_at_rate_0_are_the_stock_model():
    encoder = deep_encoder()
    before = snapshot(encoder)
    assert_unchanged(apply_patch(encoder, SparseSAM(0.0), ALL), before)


# A smaller grid.

SMALLER = {"window": 3, "global": 5}  # windows of the blocks that follow, from windows of 5


@pytest.mark.parametrize("variant", SMALLER)
@pytest.mark.parametrize("first", [0, 1, 2, 4])
def test_blocks_after_the_reduction_are_stock_blocks_on_a_smaller_grid(variant, first):
    """Reduced once, run through stock blocks, copied back; 10x10 tokens in windows of 5, no pads."""
    encoder = deep_encoder(image=(160, 160), window=5)
    x, method = image_for(encoder), make_method("cubist", 0.64, variant)
    stock, before = passes(encoder, x), snapshot(encoder)
    apply_patch(encoder, method, range(first, DEPTH))
    found, plan = passes(encoder, x), recorded(encoder, x)[f"grid.{first}"].plan
    embedding, inside = encoder(x), windows(encoder)
    assert_unchanged(remove_patch(encoder), before)

    small, by_hand = method.reduce(stock[first][0], WindowGrid((10, 10), 5))
    assert torch.equal(by_hand.rows, plan.rows) and torch.equal(by_hand.columns, plan.columns)
    assert small.shape == (2, 6, 6, 16)
    for i in range(first):
        assert torch.equal(found[i][1], stock[i][1])
    for i in range(first, DEPTH):
        own = encoder.blocks[i].window_size
        encoder.blocks[i].window_size = 0 if i in GLOBAL else SMALLER[variant]
        assert inside[i] == encoder.blocks[i].window_size
        small = encoder.blocks[i](small)
        encoder.blocks[i].window_size = own
        made = small if i < DEPTH - 1 else by_hand.unmerge(small)
        assert torch.allclose(found[i][1], made, atol=1e-5)
    want = encoder.neck(by_hand.unmerge(small).permute(0, 3, 1, 2))
    assert embedding.shape == want.shape == (2, 8, 10, 10)
    assert torch.allclose(embedding, want, atol=1e-5)


@pytest.mark.parametrize("variant", SMALLER)
def test_a_grid_reduced_by_nothing_is_the_stock_model(variant):
    encoder = deep_encoder()
    before = snapshot(encoder)
    assert_unchanged(apply_patch(encoder, make_method("cubist", 0.0, variant), ALL), before)


def test_two_images_shrink_each_on_its_own():
    encoder = deep_encoder()
    x = image_for(encoder)
    for variant in SMALLER:
        for mlp in (None, KEEP):
            with patched(encoder, make_method("cubist", 0.5, variant), range(1, DEPTH), mlp=mlp):
                assert torch.allclose(encoder(x), torch.cat([encoder(x[:1]), encoder(x[1:])]), atol=1e-5)


# Nothing is left behind.


@each_kind
def test_removing_a_patch_restores_everything(blocks, mlp):
    encoder = deep_encoder()
    x, before = image_for(encoder), snapshot(encoder)
    dense = encoder(x)
    apply_patch(encoder, blocks, mlp=mlp)
    assert changed(encoder)
    assert list(encoder.state_dict()) == list(before[2])
    found = encoder(x)
    assert found.shape == dense.shape and found.isfinite().all()
    assert not torch.allclose(found, dense, atol=1e-3)
    assert torch.equal(apply_patch(encoder, blocks, mlp=mlp)(x), found)  # twice is once
    assert_unchanged(remove_patch(encoder), before)
    assert torch.equal(encoder(x), dense)


@each_kind
def test_a_patch_ends_after_an_exception_inside_a_block(blocks, mlp):
    encoder = deep_encoder()
    x = image_for(encoder)
    with patched(encoder, blocks, mlp=mlp):
        found = encoder(x)
    before = snapshot(encoder)
    breaks = encoder.blocks[-1].norm1.register_forward_pre_hook(lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError), patched(encoder, blocks, mlp=mlp):
        encoder(x)
    breaks.remove()
    assert_unchanged(encoder, before)
    with patched(encoder, blocks, mlp=mlp):
        assert torch.equal(encoder(x), found)


@each_kind
def test_an_image_leaves_no_tensor_behind(blocks, mlp):
    encoder = deep_encoder()
    patch = patch_of(apply_patch(encoder, blocks, mlp=mlp))
    boxes, seen = torch.tensor([[10.0, 10.0, 40.0, 40.0]] * 2), []
    encoder.neck.register_forward_hook(lambda *_: seen.append(patch.memory))
    with prompted(encoder, boxes), recording(encoder):
        encoder(image_for(encoder))
        assert patch.region is not None and patch.decisions is not None
    assert len(seen) == 1 and seen[0] is not None
    assert (patch.memory, patch.region, patch.decisions) == (None, None, None)


@each_kind
def test_an_exception_in_a_block_leaves_no_tensor_alive(blocks, mlp):
    """Neither the patch nor anything else but the exception itself holds on to what the pass had computed."""
    encoder, alive = deep_encoder(), []
    patch = patch_of(apply_patch(encoder, blocks, mlp=mlp))

    def fail(*_):
        alive.extend(weakref.ref(t) for t in tensors_in(patch.memory))
        raise ZeroDivisionError

    encoder.blocks[-1].norm2.register_forward_pre_hook(fail)
    with pytest.raises(ZeroDivisionError):
        encoder(image_for(encoder))
    assert patch.memory is None
    gc.collect()
    assert [ref() for ref in alive if ref() is not None] == []
    ranked_or_shrunk = any(role.rank or role.enter for role in roles_of(encoder).values())
    assert bool(alive) == ranked_or_shrunk


def tensors_in(memory):
    """All tensors that blocks left for later ones, those of plans included."""
    values = [getattr(value, "__self__", value) for value in memory.values()]  # of a bound method, its plan
    values += [part for value in values if hasattr(value, "PARTS") for part in vars(value).values()]
    return [value for value in values if isinstance(value, torch.Tensor)]


def test_a_block_called_on_its_own_leaves_nothing_behind():
    encoder = deep_encoder()
    patch = patch_of(apply_patch(encoder, {}, mlp=KEEP))
    encoder.blocks[1](torch.randn(1, 6, 6, 16))
    assert patch.memory is None


@each_kind
def test_one_image_does_not_depend_on_the_one_before(blocks, mlp):
    encoder = deep_encoder()
    x = image_for(encoder)
    apply_patch(encoder, blocks, mlp=mlp)
    first = encoder(x[:1])
    encoder(x[1:])
    assert torch.equal(encoder(x[:1]), first)


def test_one_encoder_at_a_time():
    """Two encoders that are patched alike share nothing."""
    one, two = deep_encoder(), deep_encoder()
    for encoder in (one, two):
        apply_patch(encoder, dict.fromkeys(ALL, SparseSAM(0.6)), mlp=KEEP)
    assert patch_of(one) is not patch_of(two)
    assert geometry_of(one) == geometry_of(two)
