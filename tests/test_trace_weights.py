"""What tracing does to an exported model: weights made from weights are computed, and notes on nodes are dropped."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest
from conftest import tiny_encoder
from graphs import graph_of, node, traced
from onnx import numpy_helper
from onnx_graphsurgeon import export_onnx

from structsam_export.methods import make_method
from structsam_export.patch import patched
from structsam_export.trace import clear_metadata, fold_weights, trace_encoder

WEIGHT = np.random.default_rng(0).standard_normal((6, 4)).astype(np.float32)
CONSTANTS = {"w": WEIGHT, "first": [2], "end": [5], "axes": [0], "scale": np.float32(0.5)}
CUT = node("Slice", "w first end axes", "part")
SCALED = node("Mul", "part scale", "small")
TURNED = node("Transpose", "small", "turned", perm=[1, 0])
CHAINS = {
    "cut": ([CUT], [4, 3], WEIGHT[2:5]),
    "scaled": ([node("Mul", "w scale", "half")], [3, 6], WEIGHT / 2),
    "transposed": ([node("Transpose", "w", "turned", perm=[1, 0])], [3, 4], WEIGHT.T),
    "transposed without an order": ([node("Transpose", "w", "turned")], [3, 4], WEIGHT.T),
    "all of it": ([CUT, SCALED, TURNED], [3, 4], WEIGHT[2:5].T / 2),
}


def model_of(nodes, x, outputs="y", **constants):
    """A model whose initialisers hold only what its nodes read, as onnx and as onnx_ir."""
    proto = export_onnx(graph_of(nodes, {"x": x}, outputs, **CONSTANTS | constants))
    return proto, ir.from_proto(proto)


def initialisers(model):
    """Arrays of a model by name."""
    return {t.name: numpy_helper.to_array(t) for t in ir.to_proto(model).graph.initializer}


def operators(model):
    """Operator types of a model, in order."""
    return [n.op_type for n in model.graph]


def result(model, x):
    """The first output of a model."""
    proto = model if isinstance(model, onnx.ModelProto) else ir.to_proto(model)
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x})[0]


@pytest.mark.parametrize(("nodes", "x", "want"), CHAINS.values(), ids=CHAINS)
def test_weights_made_from_weights_become_one_initialiser(nodes, x, want):
    before, model = model_of([*nodes, node("MatMul", f"x {nodes[-1].output[0]}", "y")], [x[0], want.shape[0]])
    fold_weights(model)
    assert operators(model) == ["MatMul"]
    ((name, value),) = initialisers(model).items()
    assert name == f"{nodes[-1].output[0]}.folded"
    assert value.dtype == np.float32
    assert np.array_equal(value, want)
    image = np.random.default_rng(1).standard_normal((x[0], want.shape[0])).astype(np.float32)
    assert np.allclose(result(model, image), result(before, image), atol=1e-6)


def test_what_others_read_stays_for_them():
    nodes = [CUT, node("MatMul", "x part", "a"), node("MatMul", "a v", "b"), node("Mul", "b w", "y")]
    _, model = model_of(nodes, [6, 3], v=WEIGHT[:4, :4])
    fold_weights(model)
    found = initialisers(model)
    assert set(found) == {"w", "v", "part.folded"}
    assert np.array_equal(found["w"], WEIGHT)
    assert np.array_equal(found["part.folded"], WEIGHT[2:5])


def test_two_parts_of_one_weight():
    nodes = [CUT, node("Slice", "w zero first axes", "other"), node("MatMul", "x part", "a")]
    nodes += [node("Transpose", "other", "turned", perm=[1, 0]), node("MatMul", "a turned", "y")]
    _, model = model_of(nodes, [1, 3], zero=[0])
    fold_weights(model)
    found = initialisers(model)
    assert operators(model) == ["MatMul", "MatMul"]
    assert set(found) == {"part.folded", "turned.folded"}
    assert np.array_equal(found["part.folded"], WEIGHT[2:5])
    assert np.array_equal(found["turned.folded"], WEIGHT[:2].T)


@pytest.mark.parametrize(
    "made",
    [
        node("Slice", "x first end axes", "y"),
        node("Mul", "x scale", "y"),
        node("Mul", "x w", "y"),
        node("Transpose", "x", "y", perm=[1, 0]),
        node("MatMul", "x t", "y"),
    ],
    ids=lambda n: f"{n.op_type} of {' '.join(n.input)}",
)
def test_activations_are_not_touched(made):
    before, model = model_of([made], [6, 4], t=WEIGHT[:4])
    fold_weights(model)
    assert ir.to_proto(model).graph.node == before.graph.node
    assert set(initialisers(model)) == {t.name for t in before.graph.initializer}


def test_other_operators_on_weights_are_left_to_the_rewriting():
    _, model = model_of([node("Add", "w w", "twice"), node("Mul", "x twice", "y")], [6, 4])
    fold_weights(model)
    assert operators(model) == ["Add", "Mul"]


def test_a_weight_that_is_an_output_stays_one():
    _, model = model_of([CUT, node("MatMul", "x part", "y")], [2, 3], "y part")
    fold_weights(model)
    assert operators(model) == ["Slice", "MatMul"]
    assert [v.name for v in model.graph.outputs] == ["y", "part"]


def notes(model):
    """Everything a file says about the code it was made from."""
    graph = model.graph
    said = [p.value for n in [graph, *graph.node] for p in n.metadata_props]
    return said + [n.doc_string for n in [graph, *graph.node] if n.doc_string]


def test_notes_on_nodes_are_dropped():
    before, _ = model_of([CUT, node("MatMul", "x part", "y")], [2, 3])
    for place in (before.graph, *before.graph.node):
        place.metadata_props.add(key="stack", value='File "/home/me/secret.py", line 1')
        place.doc_string = "/home/me"
    assert len(notes(before)) == 6
    model = ir.from_proto(before)
    clear_metadata(model)
    after = ir.to_proto(model)
    assert notes(after) == []
    assert b"/home/me" not in after.SerializeToString()
    assert [n.op_type for n in after.graph.node] == ["Slice", "MatMul"]


@pytest.mark.parametrize(("method", "variant", "layers"), [("none", "dense", ()), ("structsam", "cell", (0, 1))])
def test_a_traced_encoder_says_nothing_of_where_it_was_made(method, variant, layers):
    model = onnx.ModelProto()
    model.CopyFrom(traced(method, variant, layers, 2 if layers else 1))
    assert notes(model) == []
    del model.graph.initializer[:]  # numbers may spell anything
    assert b".py" not in model.SerializeToString()


def test_no_weight_of_a_traced_encoder_is_left_to_compute(tmp_path):
    """As wide as it takes for the exporter to leave products of weights alone."""
    encoder = tiny_encoder(image=(96, 96), dim=192, depth=2)
    with patched(encoder, make_method("structsam", 0.5), (0, 1)):
        trace_encoder(encoder, 96, tmp_path / "encoder.onnx")
    graph = onnx.load(tmp_path / "encoder.onnx").graph
    weights = {t.name for t in graph.initializer}
    assert any(name.endswith(".folded") for name in weights)
    assert weights <= {name for n in graph.node for name in n.input}
    computed = [n.name for n in graph.node if n.op_type in ("Slice", "Mul", "Transpose") and set(n.input) <= weights]
    assert computed == []
