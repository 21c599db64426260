"""Sums of products under a softmax become one product."""

from __future__ import annotations

import pytest
from graphs import check_fires, check_left_alone, graph_of, node, ops

RULE = "relative_position"
# Three heads, four tokens with two channels, on a grid of 2x3; one-hots are shared by the heads.
INPUTS = {
    "q": [1, 3, 4, 2],
    "k": [1, 3, 2, 4],
    "h": [1, 3, 4, 2],
    "H": [1, 1, 2, 4],
    "w": [1, 3, 4, 3],
    "W": [1, 1, 3, 4],
}


def attention(*more):
    """Softmax(q.k + h.H + w.W)."""
    return [
        node("MatMul", "q k", "scores"),
        node("MatMul", "h H", "rows"),
        node("MatMul", "w W", "columns"),
        node("Add", "scores rows", "some"),
        node("Add", "some columns", "all"),
        node("Softmax", "all", "y", axis=-1),
        *more,
    ]


def test_three_products_become_one():
    graph = graph_of(attention(), INPUTS, "y")
    check_fires(RULE, graph, 1)
    # The one-hots are spread over the heads; q, k, h and w already have them.
    assert sorted(ops(graph)) == ["Concat", "Concat", "Expand", "Expand", "MatMul", "Softmax"]
    product = next(n for n in graph.nodes if n.op == "MatMul")
    assert [t.shape for t in product.inputs] == [[1, 3, 4, 7], [1, 3, 7, 4]]


@pytest.mark.parametrize("total", ["columns some", "some columns"])
def test_in_any_order_of_addition(total):
    nodes = attention()
    nodes[3], nodes[4] = node("Add", "rows scores", "some"), node("Add", total, "all")
    check_fires(RULE, graph_of(nodes, INPUTS, "y"), 1)


def test_scores_that_others_read_keep_their_value():
    check_fires(RULE, graph_of(attention(node("Neg", "all", "z"), node("Neg", "rows", "r")), INPUTS, "y z r some"), 1)


def test_every_attention_is_rewritten():
    second = [node("Add", "rows columns", "bias"), node("Softmax", "bias", "z", axis=-1)]
    check_fires(RULE, graph_of(attention(*second), INPUTS, "y z"), 2)


def test_one_product_is_left_alone():
    nodes = [node("MatMul", "q k", "scores"), node("Softmax", "scores", "y", axis=-1)]
    check_left_alone(RULE, graph_of(nodes, {"q": [3, 4, 2], "k": [3, 2, 4]}, "y"))


def test_a_sum_with_anything_else_is_left_alone():
    nodes = attention()
    nodes[4] = node("Add", "some mask", "all")
    check_left_alone(RULE, graph_of(nodes[:2] + nodes[3:], INPUTS | {"mask": [1, 1, 4, 4]}, "y"))


def test_scaled_scores_are_left_alone():
    nodes = [*attention()[:5], node("Mul", "all all", "scaled"), node("Softmax", "scaled", "y", axis=-1)]
    check_left_alone(RULE, graph_of(nodes, INPUTS, "y"))


def test_unknown_shapes_are_left_alone():
    shapes = {name: ["B", *shape[1:]] for name, shape in INPUTS.items()}
    check_left_alone(RULE, graph_of(attention(), shapes, "y"), "shapes are not all known")


def test_a_product_broadcast_over_the_queries_is_left_alone():
    check_left_alone(RULE, graph_of(attention(), INPUTS | {"w": [1, 3, 1, 3]}, "y"), "repeated over queries")
