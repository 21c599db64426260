"""All rules in order on a traced encoder: how often each fires, and that the result is the same and is deployable."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from graphs import MODULES, run, traced

import structsam_export.rewrite as rewriting
from structsam_export.methods import METHODS, method_class
from structsam_export.methods.base import MergeMethod
from structsam_export.rewrite import RULES, apply_rules, rewrite

PACKAGE = Path(rewriting.__file__).parent
BATCH, DEPTH, MERGING = 2, 3, (0, 1)  # a windowed layer, a global one, and block 2 left as segment_anything's
NAMES = [name for name in METHODS if issubclass(method_class(name), MergeMethod)]
VARIANTS = [(name, variant) for name in NAMES for variant in method_class(name).VARIANTS]
PLANS = [f"plan.{layer}.{part}" for layer in MERGING for part in ("pos", "slot", "sources")]
each_variant = pytest.mark.parametrize(("method", "variant"), VARIANTS)

# How often rules fire in both merging layers and the stock one; of matching methods only one, with pads in layer 0.
ALWAYS = {"layer_norm_2d": 2, "gelu": DEPTH}
DENSE = ALWAYS | {"stock_relative_position": DEPTH, "split": DEPTH, "linear": 4, "reshape_chain": 8}
MERGED = ALWAYS | {
    "gather_last": 2,
    "movement_gather": 4,
    "stock_relative_position": 1,
    "linear": 10,
    "reshape_chain": 16,
}
CELL = MERGED | {"gather_nd": 14, "row_gather": 6, "gather_grid": 4, "split": 5}
BSM = MERGED | {"gather_nd": 10, "row_gather": 13, "gather_grid": 6, "split": 7, "fold_constants": 1}
COUNTS = {("structsam", "cell"): CELL, ("structsam", "bsm"): BSM}


def graph_for(method, variant):
    """(traced model, rewritten graph, counts, reasons)."""
    raw = traced(method, variant, MERGING, BATCH)
    graph, skipped = gs.import_onnx(raw), []
    return raw, graph, apply_rules(graph, skipped), skipped


@pytest.fixture
def image():
    return np.random.default_rng(0).standard_normal((BATCH, 3, 96, 96)).astype(np.float32)


def test_every_rule_is_registered_and_has_its_test():
    helpers = {"__init__", "match", "weights", "layout", "softmax_attention"}
    modules = {p.stem for p in PACKAGE.glob("*.py")} - helpers
    assert modules == set(MODULES)
    assert all(module == f"{PACKAGE.parent.name}.rewrite.{rule}" for rule, module in MODULES.items())
    tests = {p.stem.removeprefix("test_") for p in Path(__file__).parent.glob("test_*.py")}
    assert tests == {*MODULES, "rewrite", "weights", "softmax_attention", "forms"}


@pytest.mark.parametrize("rule", MODULES)
def test_a_rule_says_what_it_does(rule):
    module = import_module(MODULES[rule])
    assert module.__doc__ and module.apply.__doc__


@pytest.mark.parametrize(("method", "variant"), COUNTS)
def test_how_often_rules_fire(method, variant):
    counts = graph_for(method, variant)[2]
    assert counts == dict.fromkeys(RULES, 0) | COUNTS[method, variant]
    assert list(counts) == list(RULES)


@each_variant
def test_attention_of_every_layer_is_rewritten(method, variant):
    counts = graph_for(method, variant)[2]
    assert counts["gather_last"] == len(MERGING)
    assert counts["stock_relative_position"] == DEPTH - len(MERGING)


def test_counts_of_the_dense_model():
    counts = apply_rules(gs.import_onnx(traced("none", "dense", (), 1)))
    assert counts == dict.fromkeys(RULES, 0) | DENSE


@each_variant
def test_a_second_run_fires_nothing(method, variant):
    again = apply_rules(graph_for(method, variant)[1])
    del again["fold_constants"]  # has its own test
    assert set(again.values()) == {0}


@each_variant
def test_a_second_run_folds_nothing(method, variant):
    assert apply_rules(graph_for(method, variant)[1])["fold_constants"] == 0


@each_variant
def test_results_are_those_of_the_traced_graph(method, variant, image):
    raw, graph, _, _ = graph_for(method, variant)
    before, after = run(raw, {"image": image}), run(graph, {"image": image})
    assert list(after) == list(before) == ["image_embeddings", *PLANS]
    assert np.allclose(after.pop("image_embeddings"), before.pop("image_embeddings"), atol=1e-5)
    assert all(np.array_equal(after[name], before[name]) for name in before)


def test_results_of_the_dense_model():
    raw = traced("none", "dense", (), 1)
    graph = gs.import_onnx(raw)
    apply_rules(graph)
    image = np.random.default_rng(0).standard_normal((1, 3, 96, 96)).astype(np.float32)
    before, after = run(raw, {"image": image}), run(graph, {"image": image})
    assert np.allclose(after["image_embeddings"], before["image_embeddings"], atol=1e-5)


@each_variant
def test_nothing_a_runtime_refuses_is_left(method, variant):
    raw, graph, _, _ = graph_for(method, variant)
    assert len(graph.nodes) <= len(raw.graph.node)
    assert not {"NonZero", "GatherND", "If", "Loop"} & {n.op for n in graph.nodes}
    for n in graph.nodes:
        assert all(d > 0 for t in n.outputs for d in t.shape), f"{n.name} has no static shape"
        if n.op == "GatherElements":
            assert len(n.outputs[0].shape) == 2, "rows are gathered element by element"
        if n.op in ("ScatterElements", "ScatterND"):
            assert n.attrs.get("reduction", "none") == "none"
        if n.op == "TopK":
            assert n.inputs[1].values.max() <= 3840  # TensorRT's limit
        if n.op == "Softmax":
            product = n.inputs[0].inputs[0]
            assert product.op == "MatMul"  # no bias is added to the scores: fused kernels accept it


@each_variant
def test_unmerging_and_leaving_the_windows_is_one_gather(method, variant):
    """What leaves attention is unmerged and put back on the grid by one gather, next to the residual sum."""
    graph = graph_for(method, variant)[1]
    sums = [n for n in graph.nodes if n.op == "Add" and any(p.inputs and p.inputs[0].op == "Gather" for p in n.inputs)]
    assert len([n for n in sums if n.outputs[0].shape == [BATCH, 6, 6, 16]]) == len(MERGING)


@each_variant
def test_reasons_name_their_rule(method, variant):
    skipped = graph_for(method, variant)[3]
    assert all(reason.split(": ")[0] in RULES for reason in skipped)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "encoder.raw.onnx"
    onnx.save(traced("structsam", "cell", MERGING, BATCH), path)
    return path


def test_a_file_is_rewritten_with_its_plans_inside(source, tmp_path, image):
    target, skipped = tmp_path / "encoder.onnx", []
    counts = rewrite(source, target, keep_outputs=("image_embeddings",), skipped=skipped)
    made = onnx.load(target)
    onnx.checker.check_model(made, full_check=True)
    assert counts == graph_for("structsam", "cell")[2]
    assert [o.name for o in made.graph.output] == ["image_embeddings"]
    inside = {name for n in made.graph.node for name in n.output}
    assert set(PLANS) - inside == {"plan.0.sources", "plan.1.sources"}  # a cell's tokens follow from its destination
    assert len(made.graph.node) < len(onnx.load(source).graph.node)
    before = run(onnx.load(source), {"image": image})["image_embeddings"]
    assert np.allclose(run(made, {"image": image})["image_embeddings"], before, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["encoder.onnx", "encoder.raw.onnx"]
