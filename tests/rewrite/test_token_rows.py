"""What a block computes row by row has three axes afterwards; what mixes the grid's axes is left alone."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import pytest
from graphs import apply_once, check_fires, check_left_alone, graph_of, node, ops, run, traced

from structsam_export.rewrite import apply_rules

RULE = "token_rows"
B, H, W, D, HIDDEN = 2, 3, 5, 4, 6
X = {"x": [B, H, W, D]}
RANDOM = np.random.default_rng(3)


def normal(*shape):
    return RANDOM.standard_normal(shape).astype(np.float32)


CONSTANTS = {
    "scale": normal(D),
    "shift": normal(D),
    "w": normal(D, HIDDEN),
    "row": normal(1, D),
    "two": np.float32(2),
    "places": normal(1, H, W, D),
    "columns": normal(W, D),
    "lines": normal(H, 1, D),
    "stack": normal(H, D, D),
}

ROWWISE = {
    "a norm": node("LayerNormalization", "x scale shift", "y", axis=-1),
    "a norm, its axis counted from the front": node("LayerNormalization", "x scale shift", "y", axis=3, epsilon=1e-2),
    "a product with weights": node("MatMul", "x w", "y"),
    "a sum with a row": node("Add", "x shift", "y"),
    "a sum with a row of two axes": node("Add", "row x", "y"),
    "a sum with itself": node("Add", "x x", "y"),
    "a sum with one grid for all images": node("Add", "x places", "y"),
    "a scalar": node("Div", "x two", "y"),
    "an activation": node("Erf", "x", "y"),
    "a difference": node("Sub", "x scale", "y"),
    "a product of grids": node("Mul", "x x", "y"),
}


def tiny(nodes, inputs=X, outputs="y"):
    return graph_of(nodes, inputs, outputs, **CONSTANTS)


@pytest.mark.parametrize("name", ROWWISE)
def test_rows_of_three_axes(name):
    graph = tiny([ROWWISE[name]])
    check_fires(RULE, graph, 1)
    (made,) = [n for n in graph.nodes if n.op != "Reshape"]
    assert list(made.outputs[0].shape) == [B, H * W, made.outputs[0].shape[-1]]
    assert graph.outputs[0].name == "y" and len(graph.outputs[0].shape) == 4


def test_a_norm_keeps_its_epsilon_and_gets_the_last_axis():
    graph = tiny([ROWWISE["a norm, its axis counted from the front"]])
    assert apply_once(RULE, graph) == (1, [])
    (norm,) = [n for n in graph.nodes if n.op == "LayerNormalization"]
    assert norm.attrs["axis"] == -1 and norm.attrs["epsilon"] == pytest.approx(1e-2)


LEFT = {
    "a row for every column": ([node("Add", "x columns", "y")], X, None),
    "a row for every line": ([node("Add", "x lines", "y")], X, None),
    "grids of other sizes": ([node("Add", "x z", "y")], {**X, "z": [B, 1, W, D]}, None),
    "unknown sizes": ([node("Erf", "x", "y")], {"x": ["B", H, W, D]}, "shapes are not all known"),
    "a norm over two axes": ([node("LayerNormalization", "x columns columns", "y", axis=2)], X, None),
    "a product with other weights for every line": ([node("MatMul", "x stack", "y")], X, None),
    "a product of two tensors": ([node("MatMul", "x z", "y")], {**X, "z": [B, H, D, 7]}, None),
    "three axes": ([node("Erf", "x", "y")], {"x": [B, W, D]}, None),
    "five axes": ([node("Erf", "x", "y")], {"x": [B, 1, H, W, D]}, None),
    "an operator of pictures": ([node("Softmax", "x", "y", axis=-1)], X, None),
}


@pytest.mark.parametrize("name", LEFT)
def test_left_alone(name):
    nodes, inputs, reason = LEFT[name]
    check_left_alone(RULE, tiny(nodes, inputs), reason)


def test_scores_with_a_mask_stay_what_runtimes_recognise():
    nodes = [node("Add", "x places", "s"), node("Softmax", "s", "y", axis=-1)]
    check_left_alone(RULE, tiny(nodes))


def test_a_chain_keeps_no_view_between_its_nodes():
    nodes = [
        node("LayerNormalization", "x scale shift", "n", axis=-1),
        node("Erf", "n", "e"),
        node("Add", "x e", "y"),
    ]
    graph = tiny(nodes)
    before = run(graph, {"x": np.ones((B, H, W, D), np.float32)})["y"]
    apply_rules(graph, form="openvino")
    assert [op for op in ops(graph) if op != "Reshape"] == ["LayerNormalization", "Erf", "Add"]
    assert ops(graph).count("Reshape") <= 3  # to rows for each of two readers, and back
    assert np.allclose(run(graph, {"x": np.ones((B, H, W, D), np.float32)})["y"], before, atol=1e-6)


@pytest.mark.parametrize(("method", "variant"), [("none", "dense"), ("structsam", "cell")])
def test_blocks_of_an_encoder_have_rows(method, variant):
    """The neck's norms on channels too: only convolutions and attention see four axes."""
    graph = gs.import_onnx(traced(method, variant, () if method == "none" else (0, 1, 2), 2))
    apply_rules(graph, form="openvino")
    norms = [n for n in graph.nodes if n.op == "LayerNormalization"]
    assert len(norms) == 8  # two a block, two in the neck
    assert {len(n.outputs[0].shape) for n in norms} == {3}
    assert all(len(n.outputs[0].shape) < 4 for n in graph.nodes if n.op == "Erf")
