"""Attention as ONNX Runtime's own operator: heads among the channels, or one of each."""

from __future__ import annotations

import numpy as np
import onnx_graphsurgeon as gs
import onnxruntime
import pytest
from attention_graphs import CASES, attend
from graphs import apply_once, check_fires, feeds_of, graph_of, ops, run

RULE = "attention_ort"
WITH_HEADS = ("heads brought to the front and back", "heads brought to the front, wide values")


def made(name):
    """(graph of a case after the rule, its MultiHeadAttention node)."""
    graph = CASES[name].graph(18)
    assert apply_once(RULE, graph)[0] == 1
    return graph, next(n for n in graph.nodes if n.op == "MultiHeadAttention")


@pytest.mark.parametrize("name", CASES)
def test_what_the_operator_is_given(name):
    """(batch, tokens, heads x channels), and nothing scaled."""
    _, found = made(name)
    q, k, v = (t.shape for t in found.inputs)
    assert len(q) == len(k) == len(v) == 3
    assert q[0] == k[0] == v[0] and k[1] == v[1] and q[2] == k[2]
    assert found.outputs[0].shape == [*q[:2], v[2]]
    assert dict(found.attrs) == {"num_heads": 3 if name in WITH_HEADS else 1, "scale": 1.0}
    assert found.domain == "com.microsoft"


@pytest.mark.parametrize("name", WITH_HEADS)
def test_transposes_of_heads_go_away(name):
    graph, found = made(name)
    assert set(ops(graph)) == {"Reshape", "MultiHeadAttention"}
    assert [t.shape for t in found.inputs][:2] == [[2, 5, 12], [2, 7, 12]]
    assert graph.outputs[0].shape[:3] == [2, 5, 3]


def test_transposes_stay_where_the_result_keeps_its_heads_in_front():
    graph, found = made("heads stay in front")
    assert [t.shape for t in found.inputs] == [[6, 5, 4], [6, 7, 4], [6, 7, 4]]
    assert ops(graph).count("Transpose") == 3


@pytest.mark.parametrize("shapes", [[[5, 4], [4, 7], [7, 4]], [[2, 1, 3, 5, 4], [2, 1, 3, 4, 7], [2, 1, 3, 7, 4]]])
def test_any_number_of_leading_axes(shapes):
    check_fires(RULE, graph_of(attend(), dict(zip("qkv", shapes)), "y"), 1)


@pytest.mark.parametrize("name", CASES)
def test_as_onnx_runtime_optimises_it(name):
    """Its own optimiser knows the operator and may do with it what it likes."""
    case = CASES[name]
    graph = case.graph(18)
    feeds = feeds_of(graph)
    before = run(graph, feeds)["y"]
    apply_once(RULE, graph)
    model = gs.export_onnx(graph).SerializeToString()
    session = onnxruntime.InferenceSession(model, providers=["CPUExecutionProvider"])
    assert np.allclose(session.run(["y"], feeds)[0], before, atol=1e-5)
