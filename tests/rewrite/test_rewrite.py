"""All rules in order on a traced encoder: how often each fires, and that the result is the same and is deployable."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from pathlib import Path
from types import ModuleType

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import pytest
from graphs import MODULES, graph_of, node, ops, run, traced, unless_alike
from snapshots import check_snapshot

import structsam_export.rewrite as rewriting
from structsam_export.methods import METHODS, method_class
from structsam_export.methods.base import MergeMethod
from structsam_export.rewrite import FORMS, RULES, Fired, Rewritten, apply_form, apply_rules, rewrite

PACKAGE = Path(rewriting.__file__).parent
HELPERS = {
    "__init__",
    "fused_nodes",
    "index_map",
    "match",
    "operators",
    "results",
    "softmax_attention",
    "subgraphs",
    "weights",
}
BATCH, DEPTH, MERGING = 2, 3, (0, 1)  # a windowed layer, a global one, and block 2 left as segment_anything's
NAMES = [name for name in METHODS if issubclass(method_class(name), MergeMethod)]
VARIANTS = [(name, variant) for name in NAMES for variant in method_class(name).VARIANTS]
PLANS = [f"plan.{layer}.{part}" for layer in MERGING for part in ("pos", "slot", "sources")]
SNAPSHOT = Path(__file__).with_name("rule_counts.json")
PARAMS = [pytest.param(*pair, marks=unless_alike(*pair)) for pair in VARIANTS]
each_variant = pytest.mark.parametrize(("method", "variant"), PARAMS)
each_encoder = pytest.mark.parametrize(("method", "variant"), [("none", "dense"), *PARAMS])


@dataclass(frozen=True)
class Encoder:
    """A traced model, what the rules make of it, and what they report."""

    raw: onnx.ModelProto
    model: onnx.ModelProto
    made: Rewritten

    @property
    def graph(self):
        """A graph of its own for every test."""
        return gs.import_onnx(self.model)


@cache
def encoder_of(method, variant):
    raw = traced(method, variant, () if method == "none" else MERGING, BATCH)
    graph = gs.import_onnx(raw)
    made = apply_rules(graph)
    return Encoder(raw, gs.export_onnx(graph), made)


@pytest.fixture(scope="module")
def image():
    return np.random.default_rng(0).standard_normal((BATCH, 3, 96, 96)).astype(np.float32)


def test_every_rule_is_registered_and_has_its_test():
    modules = {p.stem for p in PACKAGE.glob("*.py")} - HELPERS
    assert modules == set(MODULES)
    tests = {p.stem.removeprefix("test_") for p in Path(__file__).parent.glob("test_*.py")}
    assert modules <= tests


@pytest.mark.parametrize("rule", MODULES)
def test_a_rule_says_what_it_does(rule):
    module = import_module(MODULES[rule])
    assert module.__doc__ and module.apply.__doc__


@pytest.fixture
def toy(monkeypatch):
    """A rule outside the package, and a form that has nothing else: Neg becomes Mul by -1."""

    def apply(graph):
        nodes = [n for n in graph.nodes if n.op == "Neg"]
        for n in nodes:
            n.op, n.inputs = "Mul", [*n.inputs, gs.Constant(f"{n.name}.minus", np.array(-1, np.float32))]
        return Fired(len(nodes), tuple(f"{n.name}: no Neg" for n in graph.nodes if n.op == "Abs"))

    module = ModuleType("toy_rule")
    module.apply = apply
    monkeypatch.setitem(sys.modules, "toy_rule", module)
    monkeypatch.setitem(FORMS, "toy", {"toy": "toy_rule"})


def test_a_new_rule_is_one_file_and_one_line(toy, tmp_path):
    """Counts, reasons and node numbers come from the rule and the runner alone."""
    nodes = [node("Neg", "x", "a"), node("Abs", "a", "b"), node("Neg", "b", "y")]
    graph = graph_of(nodes, {"x": [2, 3]}, "y")
    onnx.save(gs.export_onnx(graph), str(tmp_path / "source.onnx"))
    expected = Rewritten({"toy": 2, "fold_constants": 0, "reshape_chain": 0}, ("toy: make_b: no Neg",), 3, 3)
    assert apply_form(tmp_path / "source.onnx", tmp_path / "target.onnx", "toy") == expected
    x = np.array([[1, -2, 3], [0, 5, -6]], np.float32)
    assert np.array_equal(run(onnx.load(str(tmp_path / "target.onnx")), {"x": x})["y"], -np.abs(x))
    assert apply_rules(graph, form="toy").counts == dict.fromkeys(RULES, 0) | {"toy": 2}
    assert "Neg" not in ops(graph)


def test_two_runs_as_one():
    first = Rewritten({"a": 1, "b": 2}, ("a: n: no",), 9, 7)
    assert first.then(Rewritten({"b": 3, "c": 4}, ("c: m: no",), 7, 5)) == Rewritten(
        {"a": 1, "b": 5, "c": 4}, ("a: n: no", "c: m: no"), 9, 5
    )


@each_encoder
def test_how_often_rules_fire(method, variant):
    counts = encoder_of(method, variant).made.counts
    assert list(counts) == list(RULES)
    check_snapshot(SNAPSHOT, f"{method}-{variant} opset 18", {rule: n for rule, n in counts.items() if n})


@each_encoder
def test_attention_of_every_layer_is_rewritten(method, variant):
    counts = encoder_of(method, variant).made.counts
    merging = 0 if method == "none" else len(MERGING)
    assert counts["gather_last"] == merging
    assert counts["stock_relative_position"] == DEPTH - merging


@each_encoder
def test_a_second_run_fires_nothing(method, variant):
    assert set(apply_rules(encoder_of(method, variant).graph).counts.values()) == {0}


@each_encoder
def test_results_are_those_of_the_traced_graph(method, variant, image):
    encoder = encoder_of(method, variant)
    before, after = run(encoder.raw, {"image": image}), run(encoder.model, {"image": image})
    assert list(after) == list(before) == ["image_embeddings", *(PLANS if method != "none" else ())]
    assert np.allclose(after.pop("image_embeddings"), before.pop("image_embeddings"), atol=1e-5)
    assert all(np.array_equal(after[name], before[name]) for name in before)


@each_variant
def test_nothing_a_runtime_refuses_is_left(method, variant):
    encoder = encoder_of(method, variant)
    graph = encoder.graph
    assert len(graph.nodes) <= len(encoder.raw.graph.node)
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
    graph = encoder_of(method, variant).graph
    sums = [n for n in graph.nodes if n.op == "Add" and any(p.inputs and p.inputs[0].op == "Gather" for p in n.inputs)]
    assert len([n for n in sums if n.outputs[0].shape == [BATCH, 6, 6, 16]]) == len(MERGING)


@each_variant
def test_reasons_name_their_rule(method, variant):
    assert all(reason.split(": ")[0] in RULES for reason in encoder_of(method, variant).made.skipped)


@pytest.fixture
def source(tmp_path):
    path = tmp_path / "encoder.raw.onnx"
    onnx.save(traced("structsam", "cell", MERGING, BATCH), path)
    return path


def test_a_file_is_rewritten_with_its_plans_inside(source, tmp_path, image):
    target, expected = tmp_path / "encoder.onnx", encoder_of("structsam", "cell").made
    result = rewrite(source, target, keep_outputs=("image_embeddings",))
    made = onnx.load(target)
    onnx.checker.check_model(made, full_check=True)
    assert (result.counts, result.skipped) == (expected.counts, expected.skipped)
    assert (result.nodes_before, result.nodes) == (len(onnx.load(source).graph.node), len(made.graph.node))
    assert [o.name for o in made.graph.output] == ["image_embeddings"]
    inside = {name for n in made.graph.node for name in n.output}
    assert set(PLANS) - inside == {"plan.0.sources", "plan.1.sources"}  # a cell's tokens follow from its destination
    assert len(made.graph.node) < len(onnx.load(source).graph.node)
    before = run(onnx.load(source), {"image": image})["image_embeddings"]
    assert np.allclose(run(made, {"image": image})["image_embeddings"], before, atol=1e-5)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["encoder.onnx", "encoder.raw.onnx"]
