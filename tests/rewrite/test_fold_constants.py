"""Arithmetic on constants happens at export time; the rest stays."""

from __future__ import annotations

import numpy as np
from graphs import check_fires, check_left_alone, graph_of, node, ops, run
from onnx_graphsurgeon.logger import G_LOGGER

from structsam_export.rewrite.fold_constants import SIZE_LIMIT

RULE = "fold_constants"


def test_a_chain_of_constants_becomes_one():
    nodes = [node("Mul", "a b", "c"), node("Sub", "c a", "d"), node("Add", "x d", "y")]
    graph = graph_of(nodes, {"x": [2, 3]}, "y", a=np.float32([1, 2, 3]), b=np.float32([4, 5, 6]))
    check_fires(RULE, graph, 2)
    assert ops(graph) == ["Add"]


def test_shapes_of_known_tensors_are_constants():
    nodes = [node("Shape", "x", "s"), node("ConstantOfShape", "s", "zeros"), node("Add", "x zeros", "y")]
    check_fires(RULE, graph_of(nodes, {"x": [2, 3]}, "y"), 2)


def test_a_graph_of_runtime_values_is_left_alone():
    nodes = [node("Mul", "x a", "z"), node("Add", "z x", "y")]
    check_left_alone(RULE, graph_of(nodes, {"x": [2, 3]}, "y", a=np.float32([2])))


def repeated(rows):
    """x + one row repeated: folded, the constant would have `rows` x 1 KiB."""
    nodes = [node("Expand", "row shape", "wide"), node("Add", "x wide", "y")]
    row = np.arange(256, dtype=np.float32)[None]
    return graph_of(nodes, {"x": [rows, 256]}, "y", row=row, shape=[rows, 256])


def test_results_up_to_the_limit_are_stored():
    check_fires(RULE, repeated(SIZE_LIMIT // 1024), 1)


def test_larger_results_are_left_to_the_runtime():
    check_left_alone(RULE, repeated(SIZE_LIMIT // 1024 + 1))


def test_a_constant_output_is_still_an_output():
    graph = graph_of([node("Add", "a a", "sum"), node("Neg", "x", "y")], {"x": [1]}, "y sum", a=np.float32([3]))
    check_fires(RULE, graph, 1)
    assert run(graph, {"x": np.float32([1])})["sum"].tolist() == [6]


def test_the_library_is_as_talkative_as_before(monkeypatch):
    monkeypatch.setattr(G_LOGGER, "severity", G_LOGGER.INFO)
    check_left_alone(RULE, graph_of([node("Neg", "x", "y")], {"x": [1]}, "y"))
    assert G_LOGGER.severity == G_LOGGER.INFO
