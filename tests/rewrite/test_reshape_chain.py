"""Reshapes of reshapes, and reshapes to the shape a tensor already has."""

from __future__ import annotations

import pytest
from graphs import check_fires, check_left_alone, graph_of, node, ops

RULE = "reshape_chain"
SHAPES = {"a": [2, 12], "b": [4, 6], "c": [3, 8], "same": [4, 3, 2]}
X = {"x": [4, 3, 2]}


def test_the_last_of_two_remains():
    nodes = [node("Reshape", "x a", "one"), node("Reshape", "one b", "y")]
    graph = graph_of(nodes, X, "y", **SHAPES)
    check_fires(RULE, graph, 1)
    assert ops(graph) == ["Reshape"]


def test_the_last_of_three_remains():
    nodes = [node("Reshape", "x a", "one"), node("Reshape", "one b", "two"), node("Reshape", "two c", "y")]
    graph = graph_of(nodes, X, "y", **SHAPES)
    check_fires(RULE, graph, 2)
    assert ops(graph) == ["Reshape"]


@pytest.mark.parametrize("shape", [[-1, 8], [0, 3, 4], [0, -1, 4]])
def test_a_shape_relative_to_the_reshape_before(shape):
    """0 copies a size of the input, which is another one afterwards (2 rows, not 4)."""
    nodes = [node("Reshape", "x a", "one"), node("Reshape", "one relative", "two"), node("Neg", "two", "y")]
    check_fires(RULE, graph_of(nodes, X, "y", relative=shape, **SHAPES), 1)


def test_a_reshape_to_the_same_shape_vanishes():
    nodes = [node("Neg", "x", "z"), node("Reshape", "z same", "r"), node("Neg", "r", "y"), node("Add", "r r", "w")]
    graph = graph_of(nodes, X, "y w", **SHAPES)
    check_fires(RULE, graph, 1)
    assert ops(graph) == ["Neg", "Neg", "Add"]


def test_there_and_back_vanishes():
    nodes = [node("Reshape", "x a", "one"), node("Reshape", "one same", "back"), node("Neg", "back", "y")]
    graph = graph_of(nodes, X, "y", **SHAPES)
    check_fires(RULE, graph, 2)
    assert ops(graph) == ["Neg"]


def test_a_reshape_others_read_stays_for_them():
    nodes = [node("Reshape", "x a", "one"), node("Reshape", "one b", "y"), node("Neg", "one", "z")]
    graph = graph_of(nodes, X, "y z", **SHAPES)
    check_fires(RULE, graph, 1)
    assert sorted(ops(graph)) == ["Neg", "Reshape", "Reshape"]


def test_a_reshape_that_is_an_output_is_not_skipped_over():
    """The tensor of a named decision stays in use, so that it outlives its time as an output."""
    nodes = [node("Reshape", "x a", "plan"), node("Reshape", "plan b", "two"), node("Neg", "two", "y")]
    graph = graph_of(nodes, X, "y plan", **SHAPES)
    check_left_alone(RULE, graph)
    assert graph.nodes[1].inputs[0].name == "plan"


def test_reshapes_after_an_output_are_skipped_as_far_as_it():
    nodes = [node("Reshape", "x a", "plan"), node("Reshape", "plan b", "two"), node("Reshape", "two c", "y")]
    graph = graph_of(nodes, X, "y plan", **SHAPES)
    check_fires(RULE, graph, 1)
    assert [n.inputs[0].name for n in graph.nodes] == ["x", "plan"]


def test_an_output_keeps_its_name():
    nodes = [node("Neg", "x", "z"), node("Reshape", "z same", "y")]
    check_left_alone(RULE, graph_of(nodes, X, "y", **SHAPES))


def test_a_single_reshape_is_left_alone():
    check_left_alone(RULE, graph_of([node("Reshape", "x a", "y")], X, "y", **SHAPES))


def test_other_layout_changes_between_are_left_alone():
    nodes = [node("Reshape", "x a", "one"), node("Transpose", "one", "two", perm=[1, 0]), node("Reshape", "two b", "y")]
    check_left_alone(RULE, graph_of(nodes, X, "y", **SHAPES))


def test_unknown_shapes_are_left_alone():
    nodes = [node("Reshape", "x a", "one"), node("Reshape", "one i", "y")]
    check_left_alone(RULE, graph_of(nodes, X | {"i": [2]}, "y", **SHAPES))
