"""Linear layers between reshapes, as projections of heads are traced."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import check_fires, check_left_alone, graph_of, node, ops

RULE = "linear"
RNG = np.random.default_rng(0)


def weight(rows, columns):
    return RNG.standard_normal((rows, columns)).astype(np.float32)


def layer(x="x", out="y", **extra):
    return [node("MatMul", f"{x} W", "product"), node("Add", "product b", "sum"), node("Reshape", "sum heads", out)]


CONSTANTS = {"W": weight(4, 6), "b": weight(1, 6)[0], "heads": [2, 3, 2, 3]}


def test_a_layer_between_two_reshapes():
    nodes = [node("Reshape", "x flat", "rows"), *layer("rows")]
    graph = graph_of(nodes, {"x": [2, 3, 2, 2]}, "y", flat=[2, 3, 4], **CONSTANTS)
    check_fires(RULE, graph, 1)
    assert "Gemm" in ops(graph) and not {"MatMul", "Add"} & set(ops(graph))


def test_the_bias_may_come_first():
    nodes = [node("Reshape", "x flat", "rows"), *layer("rows")]
    nodes[2] = node("Add", "b product", "sum")
    check_fires(RULE, graph_of(nodes, {"x": [2, 3, 2, 2]}, "y", flat=[2, 3, 4], **CONSTANTS), 1)


def test_layers_of_one_input_share_its_rows():
    nodes = [
        node("MatMul", "x W", "p"),
        node("MatMul", "x V", "q"),
        node("Add", "p b", "s"),
        node("Add", "q b", "t"),
        node("Reshape", "s heads", "y"),
        node("Reshape", "t heads", "z"),
    ]
    graph = graph_of(nodes, {"x": [2, 3, 4]}, "y z", V=weight(4, 6), **CONSTANTS)
    check_fires(RULE, graph, 2)
    gemms = [n for n in graph.nodes if n.op == "Gemm"]
    assert gemms[0].inputs[0] is gemms[1].inputs[0]


def test_a_layer_that_would_need_a_reshape_of_its_own_is_left_alone():
    check_left_alone(RULE, graph_of(layer(), {"x": [2, 3, 4]}, "y", **CONSTANTS))


def test_a_layer_that_is_not_reshaped_afterwards_is_left_alone():
    nodes = [node("Reshape", "x flat", "rows"), *layer("rows")[:2], node("Relu", "sum", "y")]
    check_left_alone(RULE, graph_of(nodes, {"x": [2, 3, 2, 2]}, "y", flat=[2, 3, 4], W=weight(4, 6), b=weight(1, 6)[0]))


@pytest.mark.parametrize("bias", [weight(1, 1)[0], weight(3, 6)], ids=["one number", "one for each row"])
def test_what_is_no_bias_is_left_alone(bias):
    nodes = [node("Reshape", "x flat", "rows"), *layer("rows")]
    check_left_alone(RULE, graph_of(nodes, {"x": [2, 3, 2, 2]}, "y", flat=[2, 3, 4], **CONSTANTS | {"b": bias}))


def test_products_of_activations_are_left_alone():
    nodes = [node("Reshape", "x flat", "rows"), node("Transpose", "w", "W", perm=[1, 0]), *layer("rows")]
    constants = {k: v for k, v in CONSTANTS.items() if k != "W"}
    check_left_alone(RULE, graph_of(nodes, {"x": [2, 3, 2, 2], "w": [6, 4]}, "y", flat=[2, 3, 4], **constants))


def test_a_sum_that_is_read_twice_is_left_alone():
    nodes = [node("Reshape", "x flat", "rows"), *layer("rows"), node("Relu", "sum", "z")]
    check_left_alone(RULE, graph_of(nodes, {"x": [2, 3, 2, 2]}, "y z", flat=[2, 3, 4], **CONSTANTS))
