"""Declared operators are what their runtime says of them."""

from __future__ import annotations

import onnx
import pytest
from onnx import helper
from onnxruntime.capi.onnxruntime_pybind11_state import get_all_operator_schema

from structsam_export.rewrite.operators import FUSED, OPERATORS, declared

SCHEMAS = {(s.domain, s.name): s for s in get_all_operator_schema()}


# Our own are held to their functions in tests/plugins.
THEIRS = [operator for operator in OPERATORS.values() if operator not in FUSED]


@pytest.mark.parametrize("operator", THEIRS, ids=lambda operator: operator.op)
def test_types_are_those_of_onnx_runtime(operator):
    schema = SCHEMAS[operator.domain, operator.op]
    allowed = {c.type_param_str: tuple(c.allowed_type_strs) for c in schema.type_constraints}
    inputs, outputs = operator.formals(len(operator.inputs), len(operator.outputs))
    for formal, parameter in (*zip(inputs, schema.inputs), *zip(outputs, schema.outputs)):
        assert set(formal) == set(allowed[parameter.typeStr]), parameter.name
    shared = {p.typeStr for kind, p in zip(operator.inputs, schema.inputs) if kind == "T"}
    assert len(shared) == 1, "one type parameter"


def test_a_node_is_known_by_domain_and_name():
    node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=2)
    assert declared(node) is OPERATORS["com.microsoft", "MultiHeadAttention"]
    assert declared(helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"])) is None
    assert declared(helper.make_node("Add", ["a", "b"], ["c"])) is None
    assert onnx.defs.has("Attention", max_inclusive_version=23, domain="")


def test_shapes_of_attention():
    operator = OPERATORS["com.microsoft", "MultiHeadAttention"]
    node = helper.make_node("MultiHeadAttention", ["q", "k", "v"], ["y"], domain="com.microsoft", num_heads=2)
    assert operator.shapes(node, [[2, 5, 8], [2, 7, 8], [2, 7, 6]]) == [[2, 5, 6]]
    assert operator.shapes(node, [[2, 5, 8], None, None]) == [None]
