"""Subgraphs: all their nodes, what they read of the graph around them, and how that is renamed."""

from __future__ import annotations

import pytest
from onnx import TensorProto, helper

from structsam_export.rewrite.subgraphs import all_nodes, bodies, captured, names_read, rename_captured


@pytest.fixture
def nested():
    """A Scan in a Scan, which reads names from two levels up, a constant of its own, and passes an outer tensor on."""
    value = helper.make_tensor_value_info
    add = helper.make_node("Add", ["c", "deep"], ["d"], name="add")
    inner = helper.make_graph(
        [add], "inner", [value("c", TensorProto.FLOAT, [2])], [value("d", TensorProto.FLOAT, [2])]
    )
    loop = helper.make_node("Scan", ["b"], ["e"], name="loop", body=inner, num_scan_inputs=1)
    nodes = [helper.make_node("Mul", ["shallow", "own"], ["b"], name="mul"), loop]
    outputs = [value("e", TensorProto.FLOAT, [2]), value("passed", TensorProto.FLOAT, [2])]
    own = helper.make_tensor("own", TensorProto.FLOAT, [1], [2.0])
    outer = helper.make_graph(nodes, "outer", [value("a", TensorProto.FLOAT, [2])], outputs, [own])
    return helper.make_node("Scan", ["x"], ["y", "z"], name="scan", body=outer, num_scan_inputs=1)


def test_all_nodes_whatever_the_depth(nested):
    graph = helper.make_graph([nested, helper.make_node("Neg", ["y"], ["n"], name="neg")], "top", [], [])
    assert [n.name for n in all_nodes(graph)] == ["scan", "mul", "loop", "add", "neg"]
    assert [body.name for body in bodies(nested)] == ["outer"]
    assert names_read(graph) == {"x", "shallow", "own", "b", "c", "deep", "y"}
    assert names_read(helper.make_graph([], "empty", [], [])) == set()


def test_captured_is_what_comes_from_outside(nested):
    """Outputs that are an outer tensor, too; a node without subgraphs captures nothing."""
    assert captured(nested) == ["shallow", "deep", "passed"]
    assert captured(bodies(nested)[0].node[0]) == []


def test_both_branches_of_a_condition_capture():
    value = helper.make_tensor_value_info("z", TensorProto.FLOAT, [2])
    first, second = (
        helper.make_graph([helper.make_node("Relu", [name], ["z"])], "b", [], [value]) for name in ("left", "right")
    )
    found = captured(helper.make_node("If", ["c"], ["y"], then_branch=first, else_branch=second))
    assert sorted(found) == ["left", "right"]


def test_captured_tensors_are_renamed_at_every_depth(nested):
    rename_captured(nested, {"deep": "deep.fp32", "shallow": "shallow.fp32", "x": "not.captured"})
    assert captured(nested) == ["shallow.fp32", "deep.fp32", "passed"]
    assert list(nested.input) == ["x"]
