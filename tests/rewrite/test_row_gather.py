"""Row gathers, as `x.gather(1, index.unsqueeze(-1).expand(-1, -1, D))` traces them."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import check_fires, check_left_alone, graph_of, node, ops

RULE = "row_gather"


def picked(data, index, wide, axis=2, gather_axis=1):
    """GatherElements(x, Expand(Unsqueeze(i, axis), wide))."""
    nodes = [
        node("Unsqueeze", "i where", "column"),
        node("Expand", "column wide", "spread"),
        node("GatherElements", "x spread", "y", axis=gather_axis),
    ]
    return graph_of(nodes, {"x": data, "i": index}, "y", where=[axis], wide=wide)


def random_index(rows, shape):
    return np.random.default_rng(0).integers(0, rows, shape)


@pytest.mark.parametrize("batch", [1, 2])
def test_rows_are_picked_whole(batch):
    graph = picked([batch, 5, 4], [batch, 3], [batch, 3, 4])
    check_fires(RULE, graph, 1, i=random_index(5, (batch, 3)))
    # The rows of one image need no offset.
    assert ops(graph) == (["Reshape", "Gather"] if batch == 1 else ["Reshape", "Add", "Gather"])


@pytest.mark.parametrize("batch", [1, 2])
def test_one_channel_needs_no_expansion(batch):
    nodes = [node("Unsqueeze", "i end", "column"), node("GatherElements", "x column", "y", axis=1)]
    graph = graph_of(nodes, {"x": [batch, 5, 1], "i": [batch, 3]}, "y", end=[-1])
    check_fires(RULE, graph, 1, i=random_index(5, (batch, 3)))


def test_tensors_that_share_an_index():
    nodes = [
        node("Unsqueeze", "i end", "column"),
        node("Expand", "column wide", "spread"),
        node("GatherElements", "x spread", "a", axis=1),
        node("GatherElements", "z spread", "b", axis=1),
    ]
    graph = graph_of(nodes, {"x": [2, 5, 4], "z": [2, 7, 4], "i": [2, 3]}, "a b", end=[2], wide=[2, 3, 4])
    check_fires(RULE, graph, 2, i=random_index(5, (2, 3)))
    assert "GatherElements" not in ops(graph)


def test_an_index_per_channel_is_left_alone():
    graph = graph_of([node("GatherElements", "x i", "y", axis=1)], {"x": [2, 5, 4], "i": [2, 3, 4]}, "y")
    check_left_alone(RULE, graph, "the index differs between channels")


@pytest.mark.parametrize("axis", [0, 2])
def test_another_axis_is_left_alone(axis):
    graph = picked([2, 5, 4], [2, 3], [2, 3, 4], gather_axis=axis)
    check_left_alone(RULE, graph, "not axis 1 of a (B, N, D) tensor")


def test_a_matrix_is_left_alone():
    graph = graph_of([node("GatherElements", "x i", "y", axis=1)], {"x": [2, 5], "i": [2, 3]}, "y")
    check_left_alone(RULE, graph, "not axis 1 of a (B, N, D) tensor")


def test_an_unknown_batch_is_left_alone():
    check_left_alone(RULE, picked(["B", 5, 4], [2, 3], [2, 3, 4]), "of known shape")


def test_an_index_unsqueezed_elsewhere_is_left_alone():
    check_left_alone(RULE, picked([2, 5, 4], [2, 3], [2, 4, 3], axis=1), "the index differs between channels")


MISREAD = {
    "unsqueezed in the middle, k = D": ([2, 5, 3], [2, 3], [2, 3, 3], 1),
    "unsqueezed in front, k = B": ([3, 5, 3], [3, 3], [3, 3, 3], 0),
    "some channels only": ([2, 5, 4], [2, 3], [2, 3, 2], 2),
    "some images only": ([2, 5, 4], [1, 3], [1, 3, 4], 2),
}


@pytest.mark.parametrize(("data", "index", "wide", "axis"), MISREAD.values(), ids=MISREAD)
def test_indices_that_only_look_like_rows_are_left_alone(data, index, wide, axis):
    check_left_alone(RULE, picked(data, index, wide, axis), "")
