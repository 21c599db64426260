"""GELU as PyTorch's exporter writes it, turned into the order that runtimes fuse."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from graphs import apply_once, check_fires, check_left_alone, graph_of, node, ops, run

RULE = "gelu"
INPUTS = {"x": [3, 5], "z": [3, 5]}
CONSTANTS = {
    "root": np.float32(2**0.5),
    "inverse": np.float32(0.5**0.5),
    "one": np.float32(1),
    "half": np.float32(0.5),
    "other": np.float32(0.4),
    "deep": np.full((1, 1, 1), 0.5, np.float32),
}


def gelu(scale=("Div", "x root"), one="e one", half="p half", last="x h", result="y"):
    """x * (half * (1 + erf(x / sqrt 2)))."""
    return [
        node(*scale, "s"),
        node("Erf", "s", "e"),
        node("Add", one, "p"),
        node("Mul", half, "h"),
        node("Mul", last, result),
    ]


def tiny(nodes, outputs="y"):
    return graph_of(nodes, INPUTS, outputs, **CONSTANTS)


ORDERS = {
    "as exported": gelu(),
    "half first": gelu(half="half p"),
    "x last": gelu(last="h x"),
    "one first": gelu(one="one e"),
    "scaled by a product": gelu(scale=("Mul", "x inverse")),
}


@pytest.mark.parametrize("nodes", ORDERS.values(), ids=ORDERS)
def test_the_half_is_applied_last(nodes):
    graph = tiny(nodes)
    check_fires(RULE, graph, 1)
    assert ops(graph)[1:] == ["Erf", "Add", "Mul", "Mul"]
    last, whole = graph.nodes[-1], graph.nodes[-2]
    assert last.outputs[0].name == "y"
    assert {"x", "p"} == {t.name for t in whole.inputs}
    assert "half" in {t.name for t in last.inputs}


def test_results_are_the_same_to_the_last_bit():
    x = np.concatenate([np.linspace(-8, 8, 4001), 10.0 ** np.arange(-30, 30), [0.0]]).astype(np.float32)
    x = np.concatenate([x, -x])
    graph = graph_of(gelu(), {"x": list(x.shape)}, "y", **CONSTANTS)
    before = run(graph, {"x": x})["y"]
    assert apply_once(RULE, graph)[0] == 1
    assert np.array_equal(before, run(graph, {"x": x})["y"])
    assert before[np.abs(x) < 1].any()


def test_every_gelu_of_a_graph():
    nodes = [*gelu(result="m"), node("Div", "m root", "s2"), node("Erf", "s2", "e2"), node("Add", "e2 one", "p2")]
    nodes += [node("Mul", "half p2", "h2"), node("Mul", "m h2", "y")]
    check_fires(RULE, tiny(nodes), 2)


def test_a_half_of_higher_rank_gives_the_result_its_rank():
    graph = tiny(gelu(half="p deep"))
    check_fires(RULE, graph, 1)
    assert [n.outputs[0].shape for n in graph.nodes[-2:]] == [[3, 5], [1, 3, 5]]


def optimised(graph, folder):
    """Operator types after ONNX Runtime's own optimisations."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    model = gs.export_onnx(graph).SerializeToString()
    ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    return [n.op_type for n in onnx.load(options.optimized_model_filepath).graph.node]


def test_onnx_runtime_makes_one_node_of_it(tmp_path):
    graph = tiny(gelu())
    assert len(optimised(graph, tmp_path)) == 5
    apply_once(RULE, graph)
    assert optimised(graph, tmp_path) == ["Gelu"]


FUSED_ORDER = [
    *gelu()[:3],
    node("Mul", "x p", "w"),
    node("Mul", "w half", "y"),
]
HALVED_INPUT = [*gelu()[:3], node("Mul", "x half", "xh"), node("Mul", "xh p", "y")]
OTHERS = {
    "already in order": FUSED_ORDER,
    "half of the input": HALVED_INPUT,
    "not a half": gelu(half="p other"),
    "a half added": [*gelu()[:3], node("Add", "p half", "h"), node("Mul", "x h", "y")],
    "erf alone": [node("Div", "x root", "s"), node("Erf", "s", "y")],
    "erf minus one": [*gelu()[:2], node("Sub", "e one", "p"), *gelu()[3:]],
}


@pytest.mark.parametrize("nodes", OTHERS.values(), ids=OTHERS)
def test_other_orders_and_numbers_are_left_alone(nodes):
    check_left_alone(RULE, tiny(nodes))


MISMATCHED = {
    "another tensor": gelu(last="z h"),
    "added instead": [*gelu()[:4], node("Add", "x h", "y")],
    "erf of the tensor itself": [node("Erf", "x", "e"), *gelu()[2:]],
}


@pytest.mark.parametrize("nodes", MISMATCHED.values(), ids=MISMATCHED)
def test_what_is_not_the_argument_of_erf_is_left_alone(nodes):
    check_left_alone(RULE, tiny(nodes), "no single reader that multiplies what erf was taken of")


@pytest.mark.parametrize(("kept", "reason"), [("e", None), ("p", None), ("h", "no single reader")])
@pytest.mark.parametrize("how", ["read twice", "an output"])
def test_intermediates_that_others_need_are_left_alone(kept, reason, how):
    nodes, outputs = (gelu(), f"y {kept}") if how == "an output" else ([*gelu(), node("Neg", kept, "w")], "y w")
    check_left_alone(RULE, tiny(nodes, outputs), reason)
