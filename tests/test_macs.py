"""Multiply-accumulates: closed forms against published tables, fvcore, and the exported graphs themselves."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from math import ceil, floor

import onnx
import onnx_graphsurgeon as gs
import pytest
import torch
from conftest import tiny_encoder
from graphs import graph_of, node, traced

from structsam_export.geometry import EncoderGeometry
from structsam_export.hosts import geometry_of
from structsam_export.macs import block_macs, graph_macs, node_macs, paper_macs
from structsam_export.methods import make_method
from structsam_export.methods.base import MergeMethod
from structsam_export.rewrite import apply_rules
from structsam_export.roles import assign
from structsam_export.tokens import WindowGrid


def vit(dim, depth, heads, global_layers):
    """SAM's encoder of one size at 1024 pixels."""
    windows = tuple(0 if i in global_layers else 14 for i in range(depth))
    return EncoderGeometry(1024, 16, (64, 64), dim, depth, heads, 4 * dim, 256, windows)


B = vit(768, 12, 12, (2, 5, 8, 11))
L = vit(1024, 24, 16, (5, 11, 17, 23))
H = vit(1280, 32, 16, (7, 15, 23, 31))
LAYERS = {"last5": (7, 8, 9, 10, 11), "global": (2, 5, 8, 11), "all": tuple(range(12))}


@dataclass(frozen=True)
class Cells(MergeMethod):
    """Merges cells at no cost of its own; `round` turns rate * N / 3 into a number of cells."""

    NAME = "cells"

    round: object = floor

    def removed(self, layout):
        return 3 * self.round(round(layout.tokens * self.rate / 3, 6))

    def macs(self, layout, head_dim):
        return 0


def norms(geometry):
    """LayerNorm MACs, 5 per element, two in a block."""
    return 10 * geometry.grid[0] * geometry.grid[1] * geometry.dim * geometry.depth


def rewritten_norms(geometry):
    """Both LayerNorm2d of the neck once they are LayerNormalizations: 5 per element."""
    return 2 * 5 * geometry.grid[0] * geometry.grid[1] * geometry.out_channels


def saved_by_proj(geometry, method, layers):
    """What running proj on the kept tokens saves; the papers run it on all."""
    calls = [geometry.window_grid(i) for i in layers]
    return sum(c.window_counts[0] * c.window_counts[1] * method.removed(c) for c in calls) * geometry.dim**2


@pytest.mark.parametrize(
    ("geometry", "published"), [(B, 486.416), (L, 1493.847), (H, 2982.219)], ids=["ViT-B", "ViT-L", "ViT-H"]
)
def test_the_dense_models(geometry, published):
    assert f"{paper_macs(geometry) / 1e9:.3f}" == f"{published:.3f}"
    assert paper_macs(geometry, make_method("none"), range(geometry.depth)) == paper_macs(geometry)
    assert paper_macs(geometry, Cells(0.5), ()) == paper_macs(geometry)


# GMACs of ViT-B with merged cells and no scoring ("ALGM fixed") at these rates.
RATES = (0.45, 0.5, 0.6, 0.7, 0.75)
FIXED = {
    "last5": (428.86, 423.98, 414.53, 406.70, 402.73),
    "global": (400.79, 393.87, 381.49, 371.24, 366.83),
    "all": (361.48, 350.76, 329.69, 312.23, 303.11),
}


@pytest.mark.parametrize("layers", LAYERS)
def test_merging_cells_at_a_fixed_rate(layers):
    found = [f"{paper_macs(B, Cells(rate), LAYERS[layers]) / 1e9:.2f}" for rate in RATES]
    assert found == [f"{published:.2f}" for published in FIXED[layers]]


@pytest.mark.parametrize("layers", LAYERS)
def test_structsam_adds_the_energy_of_each_merged_block(layers):
    merged = LAYERS[layers]
    plain, sobel = paper_macs(B, Cells(0.5), merged), 2 * 9 * 4096 * 64
    assert f"{plain / 1e9:.2f}" == f"{FIXED[layers][RATES.index(0.5)]:.2f}"
    assert paper_macs(B, make_method("structsam", 0.5), merged) == plain + len(merged) * sobel


def test_structsam_bsm_adds_its_similarities():
    """K destinations for 3K sources, K = 682 on the whole grid and 32 in each of 25 windows."""
    cell, bsm = (paper_macs(B, make_method("structsam", 0.5, v), range(12)) for v in ("cell", "bsm"))
    assert bsm - cell == (4 * 682**2 + 8 * 25 * 32**2) * 3 * 64


# Encoder reduction in percent, merging in all blocks, at rates .30 .45 .50 .60 .70 .75; then with proj on the kept
# tokens, at .45 .50 .60 .70 .75.
REDUCTION = {
    "ViT-B": (B, (-18.4, -26.0, -28.2, -32.5, -36.1, -37.7), (-28.9, -31.5, -36.3, -40.7, -42.8)),
    "ViT-L": (L, (-13.5, -19.5, -21.2, -24.9, -28.0, -29.4), (-22.9, -25.1, -29.4, -33.5, -35.5)),
    "ViT-H": (H, (-12.0, -17.4, -19.0, -22.4, -25.4, -26.8), (-20.9, -23.1, -27.2, -31.2, -33.1)),
}


def reductions(geometry, rounding, *, count_norms=False, proj_on_kept=False):
    """Percent of MACs by which merging in all blocks changes the encoder, at every tabulated rate."""
    layers, uncounted = range(geometry.depth), 0 if count_norms else norms(geometry)
    dense = paper_macs(geometry) - uncounted
    found = []
    for rate in RATES if proj_on_kept else (0.3, *RATES):
        method = Cells(rate, round=rounding)
        merged = paper_macs(geometry, method, layers) - uncounted
        merged -= saved_by_proj(geometry, method, layers) if proj_on_kept else 0
        found.append(round(100 * (merged / dense - 1), 1))
    return tuple(found)


@pytest.mark.parametrize(("geometry", "table", "with_proj"), REDUCTION.values(), ids=REDUCTION)
def test_reductions_of_the_specification(geometry, table, with_proj):
    """The table was made with K = ceil(rN/3), its second half with K = rN/3 not rounded, both without LayerNorm.

    Our K is the floor, so that never more than rN tokens are removed.
    """
    assert reductions(geometry, ceil) == table
    assert reductions(geometry, float, proj_on_kept=True) == with_proj
    assert reductions(geometry, floor) != table
    assert reductions(geometry, floor, proj_on_kept=True) != with_proj


def test_with_layer_norms_counted_the_table_is_not_reproduced():
    assert reductions(H, ceil, count_norms=True) != REDUCTION["ViT-H"][1]


def test_a_block_with_pads_computes_all_its_windows():
    """25 windows of 196 tokens: 4900, not 4096."""
    global_block, windowed = block_macs(B, 2), block_macs(B, 0)
    D, T = 768, 4096
    assert global_block == 4 * T * D * D + 2 * T * D * 3072 + 2 * T * T * D + T * 128 * D + 10 * T * D
    assert windowed == 4 * 4900 * D * D + 2 * T * D * 3072 + 2 * 25 * 196**2 * D + 4900 * 28 * D + 10 * T * D


def test_only_the_merged_layers_count_as_merged():
    method = Cells(0.5)
    saved = block_macs(B, 2) - block_macs(B, 2, method, assign(B, {2: method})[2])
    assert saved > 0
    assert paper_macs(B) - paper_macs(B, method, [2]) == saved
    assert paper_macs(B) - paper_macs(B, method, [2, 2]) == saved


def test_a_method_that_removes_nothing_costs_nothing():
    assert paper_macs(B, make_method("structsam", 0.0), range(12)) == paper_macs(B)


def test_the_layout_of_a_block():
    assert (B.window_grid(0), B.window_grid(2)) == (WindowGrid((64, 64), 14), WindowGrid((64, 64)))


@pytest.fixture(scope="module")
def tiny():
    encoder = tiny_encoder(image=(96, 96))
    return encoder, geometry_of(encoder)


def test_closed_form_is_what_fvcore_counts(tiny):
    """fvcore counts nn.LayerNorm (5 per element) but not SAM's own LayerNorm2d in the neck."""
    fvcore = pytest.importorskip("fvcore.nn")
    encoder, geometry = tiny
    logging.getLogger("fvcore").setLevel(logging.ERROR)
    counted = fvcore.FlopCountAnalysis(encoder, torch.zeros(1, 3, 96, 96)).unsupported_ops_warnings(False)
    assert counted.total() == paper_macs(geometry)
    assert counted.by_operator()["layer_norm"] == norms(geometry)


def saved(path, model):
    """The path, with this model in it."""
    onnx.save(model, path)
    return path


def rewritten(path, model):
    """The path, with the model in it after all rewriting rules."""
    graph = gs.import_onnx(model)
    apply_rules(graph)
    onnx.save(gs.export_onnx(graph), path)
    return path


def folded_bias(geometry, method, layers):
    """What scores with positions in the product cost more: h + w channels for every pair of tokens."""
    total = 0
    for i in layers:
        layout = geometry.window_grid(i)
        n = layout.tokens - (method.removed(layout) if method is not None else 0)
        total += layout.window_counts[0] * layout.window_counts[1] * geometry.heads * n * n * sum(layout.window_shape)
    return total


def test_the_dense_graph_is_the_closed_form(tmp_path, tiny):
    """Relative positions are Einsums in segment_anything's own attention, and counted like the papers count them."""
    assert graph_macs(saved(tmp_path / "raw.onnx", traced("none", "dense", (), 1))) == paper_macs(tiny[1])


def test_the_rewritten_dense_graph_adds_the_bias_products_and_the_norms_of_the_neck(tmp_path, tiny):
    path = rewritten(tmp_path / "dense.onnx", traced("none", "dense", (), 1))
    assert graph_macs(path) == paper_macs(tiny[1]) + folded_bias(tiny[1], None, range(3)) + rewritten_norms(tiny[1])


@pytest.mark.parametrize("variant", ["cell", "bsm"])
def test_the_merged_graph_is_the_closed_form_with_proj_on_kept_tokens(tmp_path, tiny, variant):
    """The patched attention spreads positions by one-hot rows already when traced; block 2 and the neck change later.

    `bsm` also merges by a one-hot product (K x 3K x D a call), and compares one more channel where there are pads.
    """
    images, layers, geometry = 2, (0, 1), tiny[1]
    method = make_method("structsam", 0.5, variant)
    model = traced("structsam", variant, layers, images)
    expected = paper_macs(geometry, method, layers) - saved_by_proj(geometry, method, layers)
    expected += folded_bias(geometry, method, layers)
    if variant == "bsm":
        for layout in (geometry.window_grid(i) for i in layers):
            pairs = 3 * (method.removed(layout) // 3) ** 2 * layout.windows
            expected += pairs * (geometry.dim + layout.has_pads)
    assert graph_macs(saved(tmp_path / "raw.onnx", model)) == images * expected
    expected += folded_bias(geometry, None, [2]) + rewritten_norms(geometry)
    assert graph_macs(rewritten(tmp_path / "merged.onnx", model)) == images * expected


SIZES = {"a": [2, 3, 4], "b": [2, 4, 5], "m": [4, 5], "y": [2, 3, 5], "image": [1, 6, 8, 8], "w": [6, 2, 3, 3]}
SIZES |= {"conv": [1, 6, 4, 4], "t": [3, 4], "g": [3, 5]}
# Five queries and seven keys; values are six wide, and three heads stand alone or among the channels.
SIZES |= {"q4": [2, 3, 5, 4], "k4": [2, 3, 7, 4], "v4": [2, 3, 7, 6], "o4": [2, 3, 5, 6]}
SIZES |= {"q3": [2, 5, 12], "k3": [2, 7, 12], "v3": [2, 7, 18], "o3": [2, 5, 18]}
# Eight portions of three rows, with a weight of the graph around them and a product of their own after it.
SIZES |= {"portions": [8, 3, 4], "done": [8, 3, 1]}
BODY = onnx.helper.make_graph(
    [node("MatMul", "one m", "wide"), node("MatMul", "wide own", "last")],
    "body",
    [onnx.helper.make_tensor_value_info("one", onnx.TensorProto.FLOAT, [3, 4])],
    [onnx.helper.make_tensor_value_info("last", onnx.TensorProto.FLOAT, [3, 1])],
    [onnx.helper.make_tensor("own", onnx.TensorProto.FLOAT, [5, 1], [1.0] * 5)],
    value_info=[onnx.helper.make_tensor_value_info("wide", onnx.TensorProto.FLOAT, [3, 5])],
)


@pytest.mark.parametrize(
    ("made", "expected"),
    [
        (node("MatMul", "a b", "y"), 2 * 3 * 5 * 4),
        (node("MatMul", "a m", "y"), 2 * 3 * 5 * 4),
        (node("Gemm", "t m bias", "g"), 3 * 5 * 4),
        (node("Einsum", "a b", "y", equation="nik, nkj -> nij"), 2 * 3 * 5 * 4),
        (node("Conv", "image w", "conv", group=3, strides=[2, 2], pads=[1, 1, 1, 1]), 6 * 4 * 4 * 2 * 9),
        (node("LayerNormalization", "a m", "a"), 5 * 2 * 3 * 4),
        (node("Attention", "q4 k4 v4", "o4"), 2 * 3 * 5 * 7 * (4 + 6)),
        (node("MultiHeadAttention", "q3 k3 v3", "o3", num_heads=3), 2 * 3 * 5 * 7 * (4 + 6)),
        (node("Scan", "portions", "done", body=BODY, num_scan_inputs=1), 8 * (3 * 5 * 4 + 3 * 5)),
        (node("Softmax", "a", "a"), 0),
        (node("Add", "nowhere a", "a"), 0),
    ],
    ids=lambda value: value.op_type if hasattr(value, "op_type") else None,
)
def test_operators(made, expected):
    assert node_macs(made, SIZES) == expected


def test_a_graph_without_shapes_is_refused(tmp_path):
    graph = graph_of([node("MatMul", "x w", "z"), node("Neg", "z", "y")], {"x": [2, 3], "w": [3, 4]}, "y")
    path = saved(tmp_path / "known.onnx", gs.export_onnx(graph))
    assert graph_macs(path) == 2 * 3 * 4
    model = onnx.load(path)
    del model.graph.value_info[:]
    with pytest.raises(ValueError, match="MatMul make_z: no shape for 'z'"):
        graph_macs(saved(tmp_path / "unknown.onnx", model))
