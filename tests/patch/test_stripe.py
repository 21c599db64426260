"""Attention to a part of the keys is SAM's attention with all other scores at minus infinity."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
from graphs import run
from segment_anything.modeling.image_encoder import Attention, add_decomposed_rel_pos

from structsam_export.hosts.segment_anything import Attention as AttentionView
from structsam_export.methods.importance import cell_rank
from structsam_export.methods.sparsesam import SparseSAM
from structsam_export.patch.stripe import all_keys, stripe_attention
from structsam_export.rewrite import apply_rules
from structsam_export.tokens import WindowGrid

DIM, HEADS, IMAGES = 12, 3, 2
TILES = {(16, 32): 16, (8, 12): 4, (6, 10): 2}  # grid -> side of a tile
each_grid = pytest.mark.parametrize("grid", TILES, ids=str)
each_variant = pytest.mark.parametrize("variant", SparseSAM.VARIANTS)
each_rate = pytest.mark.parametrize("rate", [0.75, 0.7, 0.6, 0.5, 0.25, 0.0])


def attention_for(grid, use_rel_pos=True, bias=True, trained_on=None, dtype=torch.float64):
    torch.manual_seed(0)
    attn = Attention(DIM, HEADS, qkv_bias=bias, use_rel_pos=use_rel_pos, input_size=trained_on or grid)
    for name, p in attn.named_parameters():
        torch.nn.init.normal_(p, std=0.5 if "rel" in name else 1.0)
    return attn.to(dtype).eval().requires_grad_(False)


def tokens_for(grid, dtype=torch.float64, images=IMAGES, seed=1):
    return torch.randn(images, *grid, DIM, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def plan_for(grid, rate, variant, images=IMAGES):
    generator = torch.Generator().manual_seed(2)
    cells = grid[0] * grid[1] // 4
    rank = torch.stack([torch.randperm(cells, generator=generator).float() for _ in range(images)])
    return SparseSAM(rate, variant).plan(rank, WindowGrid(grid), images)


def visited(plan, grid):
    """Which query visits which key, (B, N, N) bool: the shared keys, and the tile's with the query's parity."""
    W, N, side = grid[1], grid[0] * grid[1], TILES[grid]
    mask = np.zeros((len(plan.keys), N, N), dtype=bool)
    for image, keys in enumerate(plan.keys.tolist()):
        mask[image][:, keys] = True
    if plan.tile:
        for query in range(N):
            r, c = divmod(query, W)
            for key in range(N):
                y, x = divmod(key, W)
                alike = y % 2 == r % 2 and x % 2 == c % 2
                if alike and y // side == r // side and x // side == c // side:
                    mask[:, query, key] = True
    return torch.tensor(mask)


def masked_attention(attn, x, mask):
    """`segment_anything`'s attention, scores of what is not visited at minus infinity."""
    B, H, W, D = x.shape
    qkv = attn.qkv(x).reshape(B, H * W, 3, HEADS, -1).permute(2, 0, 3, 1, 4).reshape(3, B * HEADS, H * W, -1)
    q, k, v = qkv.unbind(0)
    scores = (q * attn.scale) @ k.transpose(-2, -1)
    if attn.use_rel_pos:
        scores = add_decomposed_rel_pos(scores, q, attn.rel_pos_h, attn.rel_pos_w, (H, W), (H, W))
    scores = scores.masked_fill(~mask.repeat_interleave(HEADS, 0), -torch.inf)
    y = (scores.softmax(-1) @ v).view(B, HEADS, H, W, -1).permute(0, 2, 3, 1, 4).reshape(B, H, W, -1)
    return attn.proj(y)


@each_rate
@each_variant
@each_grid
def test_attention_as_masked_attention(grid, variant, rate):
    attn, x, plan = attention_for(grid), tokens_for(grid), plan_for(grid, rate, variant)
    y = stripe_attention(AttentionView(attn), x, plan)
    assert y.shape == x.shape
    torch.testing.assert_close(y, masked_attention(attn, x, visited(plan, grid)), atol=1e-11, rtol=1e-9)


@each_variant
@each_grid
def test_all_keys_give_the_stock_result(grid, variant):
    attn, x = attention_for(grid), tokens_for(grid)
    torch.testing.assert_close(
        stripe_attention(AttentionView(attn), x, plan_for(grid, 0.0, variant)), attn(x), atol=1e-11, rtol=1e-9
    )


def test_the_references_are_not_all_the_same():
    grid = (16, 32)
    attn, x = attention_for(grid), tokens_for(grid)
    made = [
        stripe_attention(AttentionView(attn), x, plan_for(grid, rate, v))
        for rate in (0.6, 0.5)
        for v in ("stripe", "diagonal")
    ]
    made.append(attn(x))
    distances = [(a - b).abs().max().item() for i, a in enumerate(made) for b in made[:i]]
    assert min(distances) > 0.1


@each_variant
@pytest.mark.parametrize(
    "changed",
    [{"use_rel_pos": False}, {"bias": False}, {"trained_on": (10, 6)}],
    ids=["no positions", "no bias", "resized tables"],
)
def test_other_attention_modules(changed, variant):
    grid = (8, 12)
    attn, x, plan = attention_for(grid, **changed), tokens_for(grid), plan_for(grid, 0.6, variant)
    expected = masked_attention(attn, x, visited(plan, grid))
    torch.testing.assert_close(stripe_attention(AttentionView(attn), x, plan), expected, atol=1e-11, rtol=1e-9)


@each_variant
def test_an_image_attends_alike_in_any_batch(variant):
    grid = (8, 12)
    attn, x, plan = attention_for(grid), tokens_for(grid), plan_for(grid, 0.6, variant)
    together = stripe_attention(AttentionView(attn), x, plan)
    for i in range(IMAGES):
        alone = type(plan)(plan.keys[i : i + 1], plan.tile)
        torch.testing.assert_close(stripe_attention(AttentionView(attn), x[i : i + 1], alone), together[i : i + 1])


def test_half_precision_stays_finite():
    """-1e9 is minus infinity there; the mask must not turn it into NaN."""
    grid = (8, 12)
    attn, x = attention_for(grid, dtype=torch.float16), tokens_for(grid, torch.float16)
    attn.rel_pos_h.mul_(0.1), attn.rel_pos_w.mul_(0.1)
    for rate in (0.75, 0.6):
        assert stripe_attention(AttentionView(attn), x, plan_for(grid, rate, "diagonal")).isfinite().all()


def test_the_keys_of_all_tokens():
    grid = (6, 10)
    attn, x = attention_for(grid), tokens_for(grid)
    stock = attn.qkv(x).reshape(IMAGES, 60, 3, HEADS, -1).permute(2, 0, 3, 1, 4)
    torch.testing.assert_close(all_keys(AttentionView(attn), x), stock[1])


class Sparse(torch.nn.Module):
    """Rank where that is needed, plan, attend."""

    def __init__(self, grid, rate, variant):
        super().__init__()
        self.attn, self.method = attention_for(grid, dtype=torch.float32), SparseSAM(rate, variant)
        self.layout = WindowGrid(grid)

    def forward(self, x):
        needed = self.method.needs_rank(self.layout)
        rank = cell_rank(all_keys(AttentionView(self.attn), x), self.layout.shape) if needed else None
        plan = self.method.plan(rank, self.layout, x.shape[0])
        return stripe_attention(AttentionView(self.attn), x, plan), plan.keys


GRID, LINES = (16, 32), 48  # eight blocks of 64; at rate 0.6 a quarter and a half, 192 keys


@cache
def exported(rate, variant):
    """(module, traced model) of two images."""
    module = Sparse(GRID, rate, variant).eval()
    names = {"input_names": ["x"], "output_names": ["y", "keys"]}
    x = tokens_for(GRID, torch.float32)
    return module, torch.onnx.export(module, (x,), dynamo=True, opset_version=18, verbose=False, **names).model_proto


CASES = [(0.75, "stripe"), (0.6, "stripe"), (0.75, "diagonal"), (0.6, "diagonal")]
each_export = pytest.mark.parametrize(("rate", "variant"), CASES)


@each_export
def test_the_same_in_onnx_before_and_after_rewriting(rate, variant):
    module, model = exported(rate, variant)
    x = tokens_for(GRID, torch.float32, seed=5)
    graph = gs.import_onnx(model)
    apply_rules(graph)
    rewritten = gs.export_onnx(graph)
    onnx.checker.check_model(rewritten, full_check=True)
    y, keys = module(x)
    for made in (model, rewritten):
        found = run(made, {"x": x.numpy()})
        assert np.array_equal(found["keys"], keys)
        assert np.allclose(found["y"], y, atol=2e-4)


@each_export
def test_nothing_a_runtime_refuses(rate, variant):
    graph = gs.import_onnx(exported(rate, variant)[1])
    apply_rules(graph)
    assert not {n.op for n in graph.nodes} & {"NonZero", "Compress", "GatherND", "ScatterND", "If", "Loop", "OneHot"}
    for n in graph.nodes:
        assert all(d > 0 for t in n.outputs for d in t.shape), f"{n.name} has no static shape"
        assert all(len(t.shape) <= 8 for t in n.outputs)  # TensorRT's limit
        if n.op == "GatherElements":
            assert len(n.outputs[0].shape) == 2, "rows are gathered element by element"
        if n.op == "ScatterElements":
            assert n.attrs.get("reduction", "none") == "none"
        if n.op == "TopK":
            assert n.inputs[1].values.max() <= 128  # cells


@each_export
def test_ranking_is_in_the_graph_only_where_it_decides(rate, variant):
    operators = [n.op_type for n in exported(rate, variant)[1].graph.node]
    assert operators.count("TopK") == (0 if rate == 0.75 else 2)
    if rate == 0.75:
        assert not {"ScatterElements", "Equal", "GatherElements", "Sqrt"} & set(operators)


@pytest.mark.parametrize("rate", [0.75, 0.6])
def test_scores_of_a_stripe_are_folded_into_one_product(rate):
    graph = gs.import_onnx(exported(rate, "stripe")[1])
    made = apply_rules(graph)
    assert made.counts["relative_position"] == 1
    assert made.skipped == ()
    softmax = next(n for n in graph.nodes if n.op == "Softmax")
    product = softmax.inputs[0].inputs[0]
    assert product.op == "MatMul"
    assert product.inputs[0].shape == [IMAGES, HEADS, 512, DIM // HEADS + LINES]


def test_scores_with_tiles_are_two_products():
    """One over the stripe, one over the tiles, both with the positions inside."""
    graph = gs.import_onnx(exported(0.6, "diagonal")[1])
    apply_rules(graph)
    wide = [n for n in graph.nodes if n.op == "MatMul" and n.inputs[0].shape[-1] == DIM // HEADS + LINES]
    assert sorted(n.outputs[0].shape for n in wide) == [[IMAGES, HEADS, 8, 64, 64], [IMAGES, HEADS, 512, 192]]


@each_export
def test_only_visited_keys_are_projected(rate, variant):
    """A stripe's keys and values cost nk rows; with tiles every token is a key of someone."""
    model = exported(rate, variant)[1]
    shapes = {v.name: [d.dim_value for d in v.type.tensor_type.shape.dim] for v in model.graph.value_info}
    products = [shapes[n.output[0]] for n in model.graph.node if n.op_type == "MatMul"]
    projected = [shape[1] for shape in products if shape[2:] == [2 * DIM]]
    assert projected == [{0.75: 128, 0.6: 192}[rate] if variant == "stripe" else 512]
