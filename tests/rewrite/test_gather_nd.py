"""Table look-ups with one index per row, as `table[index]` traces them."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import check_fires, check_left_alone, graph_of, node, ops

RULE = "gather_nd"


def lookup(index, axis=-1, **attributes):
    """GatherND(table, Unsqueeze(index, axis))."""
    nodes = [node("Unsqueeze", "i axis", "wide"), node("GatherND", "table wide", "y", **attributes)]
    return graph_of(nodes, {"table": [5, 3], "i": index}, "y", axis=[axis])


@pytest.mark.parametrize("index", [[4], [2, 4]])
def test_a_look_up_becomes_a_gather(index):
    graph = lookup(index)
    check_fires(RULE, graph, 1, i=np.random.default_rng(0).integers(0, 5, index))
    assert ops(graph) == ["Gather"]
    assert graph.nodes[0].attrs == {"axis": 0}


def test_every_look_up_is_rewritten():
    nodes = [
        node("Unsqueeze", "i end", "wide"),
        node("GatherND", "table wide", "a"),
        node("GatherND", "other wide", "b"),
    ]
    graph = graph_of(nodes, {"table": [5, 3], "other": [5], "i": [2, 4]}, "a b", end=[2])
    check_fires(RULE, graph, 2, i=np.random.default_rng(0).integers(0, 5, (2, 4)))


def test_several_indexed_axes_are_left_alone():
    graph = graph_of([node("GatherND", "table i", "y")], {"table": [5, 3], "i": [4, 2]}, "y")
    check_left_alone(RULE, graph, "more than one indexed axis")


def test_an_index_unsqueezed_in_front_is_left_alone():
    check_left_alone(RULE, lookup([4, 1], axis=0), "not unsqueezed at its end")


def test_look_ups_per_batch_entry_are_left_alone():
    nodes = [node("Unsqueeze", "i axis", "wide"), node("GatherND", "table wide", "y", batch_dims=1)]
    check_left_alone(RULE, graph_of(nodes, {"table": [2, 5, 3], "i": [2, 4]}, "y", axis=[-1]))
