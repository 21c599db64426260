"""The relative position bias of segment_anything's own attention becomes part of one product."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import check_fires, check_left_alone, graph_of, node, ops

RULE = "stock_relative_position"
# Two heads on a grid of 3x2 tokens with four channels.
INPUTS = {"q": [2, 6, 4], "k": [2, 4, 6], "h": [2, 3, 2, 3], "w": [2, 3, 2, 2]}
CONSTANTS = {"five": [2, 3, 2, 3, 2], "flat": [2, 6, 6], "last": [-1], "before": [-2]}


def attention(by_row="last", by_column="before", inner="wide row", outer="some column"):
    """Softmax of q.k viewed as (heads, qh, qw, kh, kw) + h[..., None] + w[..., None, :]."""
    return [
        node("MatMul", "q k", "scores"),
        node("Reshape", "scores five", "wide"),
        node("Unsqueeze", f"h {by_row}", "row"),
        node("Unsqueeze", f"w {by_column}", "column"),
        node("Add", inner, "some"),
        node("Add", outer, "all"),
        node("Reshape", "all flat", "square"),
        node("Softmax", "square", "y", axis=-1),
    ]


def test_both_biases_become_part_of_the_product():
    graph = graph_of(attention(), INPUTS, "y", **CONSTANTS)
    check_fires(RULE, graph, 1)
    assert "Add" not in ops(graph)
    product = next(n for n in graph.nodes if n.op == "MatMul")
    assert [t.shape for t in product.inputs] == [[2, 6, 4 + 3 + 2], [2, 4 + 3 + 2, 6]]


def test_the_keys_get_their_row_and_column():
    """Without content, attention is decided by the biases: each query looks at the row and column it is told to."""
    graph = graph_of(attention(), INPUTS, "y", **CONSTANTS)
    h, w = np.zeros((2, 3, 2, 3), np.float32), np.zeros((2, 3, 2, 2), np.float32)
    h[..., 2] = w[..., 1] = 50
    silent = {"q": np.zeros((2, 6, 4), np.float32), "k": np.zeros((2, 4, 6), np.float32)}
    check_fires(RULE, graph, 1, h=h, w=w, **silent)


def test_scores_that_others_read_keep_their_value():
    nodes = [*attention(), node("Neg", "square", "z")]
    check_fires(RULE, graph_of(nodes, INPUTS, "y z some", **CONSTANTS), 1)


NEAR_MISSES = {
    "columns added first": attention(inner="wide column", outer="some row"),
    "bias before scores": attention(inner="row wide"),
    "rows twice": attention(outer="some row"),
    "unsqueezed alike": attention(by_row="before"),
}


@pytest.mark.parametrize("nodes", NEAR_MISSES.values(), ids=NEAR_MISSES)
def test_other_sums_are_left_alone(nodes):
    square = INPUTS | {"h": [2, 3, 2, 2]} if nodes is NEAR_MISSES["unsqueezed alike"] else INPUTS
    check_left_alone(RULE, graph_of(nodes, square, "y", **CONSTANTS))


def test_scores_that_are_no_product_are_left_alone():
    check_left_alone(RULE, graph_of(attention()[1:], INPUTS | {"scores": [2, 6, 6]}, "y", **CONSTANTS))


def test_one_bias_is_left_alone():
    nodes = attention()
    nodes[6] = node("Reshape", "some flat", "square")
    check_left_alone(RULE, graph_of([n for n in nodes if n.output[0] != "all"], INPUTS, "y", **CONSTANTS))


def test_a_plain_softmax_is_left_alone():
    check_left_alone(RULE, graph_of([node("Softmax", "q", "y", axis=-1)], {"q": [2, 6]}, "y"))


def test_unknown_shapes_are_left_alone():
    inputs = INPUTS | {"q": ["B", 6, 4], "k": ["B", 4, 6]}
    check_left_alone(RULE, graph_of(attention(), inputs, "y", **CONSTANTS), "shapes are not all known")


def test_nothing_is_left_to_compute_from_constants():
    graph = graph_of(attention(), INPUTS, "y", **CONSTANTS)
    check_fires(RULE, graph, 1)
    assert "Expand" not in ops(graph)


def test_a_bias_shared_by_all_heads_is_left_alone():
    check_left_alone(RULE, graph_of(attention(), INPUTS | {"h": [1, 3, 2, 3]}, "y", **CONSTANTS), "shared")
