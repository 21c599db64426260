"""Slices that cut a tensor into pieces."""

from __future__ import annotations

import pytest
from graphs import check_fires, check_left_alone, graph_of, node, ops

RULE = "split"


def cut(pieces, axis, shape, steps=None):
    """A graph whose outputs y0, y1, ... are slices of x along an axis."""
    nodes, constants = [], {"axis": [axis]}
    for i, (start, end) in enumerate(pieces):
        nodes.append(node("Slice", f"x s{i} e{i} axis" + (" step" if steps else ""), f"y{i}"))
        constants |= {f"s{i}": [start], f"e{i}": [end]}
    if steps:
        constants["step"] = [steps]
    return graph_of(nodes, {"x": shape}, " ".join(f"y{i}" for i in range(len(pieces))), **constants)


WHOLE = {
    "two": ([(0, 3), (3, 8)], 1, [2, 8]),
    "three": ([(0, 1), (1, 2), (2, 3)], 0, [3, 4, 5]),
    "in any order": ([(3, 8), (0, 3)], 1, [2, 8]),
    "counted from the end": ([(0, -5), (-5, 2**62)], -1, [2, 8]),
}


@pytest.mark.parametrize("case", WHOLE.values(), ids=WHOLE)
def test_pieces_that_make_up_the_whole(case):
    graph = cut(*case)
    check_fires(RULE, graph, 1)
    assert ops(graph) == ["Split"]


def test_steps_of_one():
    check_fires(RULE, cut([(0, 3), (3, 8)], 1, [2, 8], steps=1), 1)


PARTS = {
    "a gap": ([(0, 3), (4, 8)], 1, [2, 8]),
    "an overlap": ([(0, 4), (3, 8)], 1, [2, 8]),
    "an end missing": ([(0, 3), (3, 7)], 1, [2, 8]),
    "one piece": ([(0, 8)], 1, [2, 8]),
    "twice the same": ([(0, 8), (0, 8)], 1, [2, 8]),
    "unknown size": ([(0, 3), (3, 8)], 1, ["B", 8]),
}


@pytest.mark.parametrize("case", PARTS.values(), ids=PARTS)
def test_other_pieces_are_left_alone(case):
    check_left_alone(RULE, cut(*case))


def test_every_second_element_is_no_piece():
    check_left_alone(RULE, cut([(0, 4), (4, 8)], 1, [2, 8], steps=2))


def test_pieces_along_two_axes_are_left_alone():
    nodes = [node("Slice", "x s0 e0 a0", "y"), node("Slice", "x s1 e1 a1", "z")]
    graph = graph_of(nodes, {"x": [4, 4]}, "y z", s0=[0], e0=[2], a0=[0], s1=[2], e1=[4], a1=[1])
    check_left_alone(RULE, graph)
