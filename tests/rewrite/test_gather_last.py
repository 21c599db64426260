"""Layout changes after a row gather move onto its index."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import check_fires, check_left_alone, graph_of, node, ops

RULE = "gather_last"
INPUTS = {"x": [5, 3], "i": [4, 4]}  # 5 rows of 3 channels; 4 windows of 2x2 tokens
CONSTANTS = {
    "windows": [2, 2, 2, 2, 3],
    "grid": [4, 4, 3],
    "start": [0, 0],
    "end": [3, 4],
    "axes": [0, 1],
}
INDEX = np.random.default_rng(0).integers(0, 5, (4, 4))


def unwindow(last="y"):
    """Gather, then windows back to a grid whose last row is cropped, as SAM's window_unpartition."""
    return [
        node("Gather", "x i", "rows", axis=0),
        node("Reshape", "rows windows", "five"),
        node("Transpose", "five", "swapped", perm=[0, 2, 1, 3, 4]),
        node("Reshape", "swapped grid", "whole"),
        node("Slice", "whole start end axes", last),
    ]


def test_windows_are_put_back_on_the_index():
    graph = graph_of(unwindow(), INPUTS, "y", **CONSTANTS)
    check_fires(RULE, graph, 1, i=INDEX)
    assert ops(graph) == ["Reshape", "Transpose", "Reshape", "Slice", "Gather"]
    assert graph.nodes[-1].outputs[0].name == "y"


def test_the_chain_ends_where_channels_change():
    nodes = [*unwindow("z"), node("Reshape", "z heads", "split"), node("Transpose", "split", "y", perm=[2, 0, 1, 3])]
    graph = graph_of(nodes, INPUTS, "y", heads=[3, 4, 3, 1], **CONSTANTS)
    check_fires(RULE, graph, 1, i=INDEX)
    assert ops(graph)[-3:] == ["Gather", "Reshape", "Transpose"]


def test_gathers_of_different_rows_are_moved_each():
    nodes = [
        node("Neg", "x", "z"),
        node("Gather", "x i", "a", axis=0),
        node("Transpose", "a", "b", perm=[1, 0, 2]),
        node("Gather", "z i", "c", axis=0),
        node("Transpose", "c", "d", perm=[1, 0, 2]),
        node("Add", "b d", "y"),
    ]
    check_fires(RULE, graph_of(nodes, INPUTS, "y"), 2, i=INDEX)


def test_gathers_of_the_same_rows_are_moved_each():
    nodes = [
        node("Gather", "x i", "a", axis=0),
        node("Transpose", "a", "b", perm=[1, 0, 2]),
        node("Gather", "x j", "c", axis=0),
        node("Transpose", "c", "d", perm=[1, 0, 2]),
        node("Add", "b d", "y"),
    ]
    graph = graph_of([node("Neg", "i", "minus"), node("Neg", "minus", "j"), *nodes], INPUTS, "y")
    check_fires(RULE, graph, 2, i=INDEX)


def test_a_reshape_alone_is_left_alone():
    nodes = [node("Gather", "x i", "rows", axis=0), node("Reshape", "rows windows", "y")]
    check_left_alone(RULE, graph_of(nodes, INPUTS, "y", windows=CONSTANTS["windows"]))


def test_rows_with_two_readers_are_left_alone():
    nodes = [*unwindow(), node("Neg", "rows", "second")]
    check_left_alone(RULE, graph_of(nodes, INPUTS, "y second", **CONSTANTS))


@pytest.mark.parametrize("kept", ["rows", "five"])
def test_rows_that_are_an_output_are_left_alone(kept):
    check_left_alone(RULE, graph_of(unwindow(), INPUTS, f"y {kept}", **CONSTANTS))


def test_the_chain_ends_at_an_output():
    graph = graph_of(unwindow(), INPUTS, "y swapped", **CONSTANTS)
    check_fires(RULE, graph, 1, i=INDEX)
    assert ops(graph)[2:] == ["Gather", "Reshape", "Slice"]


def test_a_constant_index_is_left_alone():
    graph = graph_of(unwindow(), {"x": [5, 3]}, "y", i=INDEX, **CONSTANTS)
    check_left_alone(RULE, graph)


def test_a_gather_of_columns_is_left_alone():
    """Three of them, as many as there are channels in a row."""
    nodes = [node("Gather", "x i", "rows", axis=1), node("Transpose", "rows", "y", perm=[1, 0, 2])]
    check_left_alone(RULE, graph_of(nodes, {"x": [5, 3], "i": [4, 3]}, "y"))


@pytest.mark.parametrize("perm", [[2, 0, 1], [0, 2, 1]])
def test_moving_channels_is_left_alone(perm):
    nodes = [node("Gather", "x i", "rows", axis=0), node("Transpose", "rows", "y", perm=perm)]
    check_left_alone(RULE, graph_of(nodes, {"x": [5, 3], "i": [3, 3]}, "y"))


def test_a_transposition_without_an_order_is_left_alone():
    nodes = [node("Gather", "x i", "rows", axis=0), node("Transpose", "rows", "y")]
    check_left_alone(RULE, graph_of(nodes, {"x": [5, 3], "i": [3, 3]}, "y"))


@pytest.mark.parametrize("axes", [[0, 2], [0, -1]])
def test_cutting_channels_is_left_alone(axes):
    """The slice happens to keep all three channels, in reverse order."""
    nodes = [node("Gather", "x i", "rows", axis=0), node("Slice", "rows from to axes step", "y")]
    constants = {"from": [0, 2], "to": [2, -9], "axes": axes, "step": [1, -1]}
    check_left_alone(RULE, graph_of(nodes, INPUTS, "y", **constants))


def test_unknown_shapes_are_left_alone():
    nodes = [node("Gather", "x i", "rows", axis=0), node("Transpose", "rows", "y", perm=[1, 0, 2])]
    check_left_alone(RULE, graph_of(nodes, {"x": [5, 3], "i": ["B", 4]}, "y"))
