"""Tiny ONNX graphs: build them, run them as written, and check a rewriting rule on them."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
import onnx_graphsurgeon as gs
import onnxruntime as ort
import pytest
from conftest import tiny_encoder
from onnx import helper, numpy_helper
from shared_traces import traced_encoder

from structsam_export.methods import make_method, method_class
from structsam_export.patch import patched
from structsam_export.rewrite import FORMS, PLUGIN_RULES, RULES, run_in_order

FLOAT, INT = onnx.TensorProto.FLOAT, onnx.TensorProto.INT64
# Those of every form included.
MODULES = {rule: module for rules in (RULES, *FORMS.values(), PLUGIN_RULES) for rule, module in rules.items()}


# Variants whose graphs have the operators of another one of their method: traced, rewritten and counted by
# `make test-all` alone. What they decide is tested in tests/methods like all others.
ALIKE = {
    ("gradtome", "alternate"),
    ("tomesd", "rand2x2"),
    ("tomesd", "rand25"),
    ("pitome", "grid"),
    ("cubist", "global"),
    ("sparsesam", "diagonal"),
}


def unless_alike(method, variant):
    """The mark of a test that makes this variant's graph."""
    return pytest.mark.slow if (method, variant) in ALIKE else ()


def node(op, inputs, output, **attributes):
    """One ONNX node with one output, named after it."""
    return helper.make_node(op, inputs.split(), [output], name=f"make_{output}", **attributes)


def graph_of(nodes, inputs, outputs, opset=18, **constants):
    """An onnx-graphsurgeon graph with shapes inferred.

    Args:
        nodes: made by `node`, in order.
        inputs: name -> shape; floats, or integers where the name begins with "i".
        outputs: names, separated by blanks.
        opset: of ONNX's own operators.
        constants: name -> array or list.
    """
    made = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, INT if n.startswith("i") else FLOAT, s) for n, s in inputs.items()],
        [helper.make_empty_tensor_value_info(name) for name in outputs.split()],
        [numpy_helper.from_array(np.asarray(value), name) for name, value in constants.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return gs.import_onnx(onnx.shape_inference.infer_shapes(model)).cleanup().toposort()


def run(model, feeds):
    """Outputs by name in ONNX Runtime, as the graph is written: no optimisation."""
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    proto = gs.export_onnx(model) if isinstance(model, gs.Graph) else model
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, feeds)))


def feeds_of(graph, **given):
    """Random numbers for the float inputs of a graph; integer inputs must be given."""
    random = np.random.default_rng(0)
    free = [t for t in graph.inputs if t.name not in given]
    return {t.name: random.standard_normal(t.shape).astype(np.float32) for t in free} | given


def ops(graph):
    """Operator types of a graph, in order."""
    return [n.op for n in graph.nodes]


def apply_once(rule, graph):
    """Run one rule as the pipeline does; returns (times fired, reasons for near matches)."""
    made = run_in_order(graph, [rule])
    return made.counts[rule], list(made.skipped)


def check_fires(rule, graph, times, atol=1e-6, **given):
    """The rule fires `times` times, then never again, and results stay as they were."""
    feeds = feeds_of(graph, **given)
    before = run(graph, feeds)
    assert apply_once(rule, graph)[0] == times
    onnx.checker.check_model(gs.export_onnx(graph), full_check=True)
    after = run(graph, feeds)
    assert list(after) == list(before)
    for name, value in before.items():
        assert after[name].shape == value.shape
        assert np.allclose(after[name], value, atol=atol), name
    rewritten = ops(graph)
    assert apply_once(rule, graph)[0] == 0
    assert ops(graph) == rewritten


def check_left_alone(rule, graph, reason=None):
    """The rule does not fire, changes nothing, and says why where a reason is expected."""
    before = gs.export_onnx(graph).SerializeToString()
    fired, skipped = apply_once(rule, graph)
    assert fired == 0
    assert gs.export_onnx(graph).SerializeToString() == before
    if reason is None:
        assert skipped == []
    else:
        assert len(skipped) == 1
        assert skipped[0].startswith(f"{rule}: ")
        assert reason in skipped[0]


def traced(method, variant, layers, batch, opset=18):
    """A tiny encoder (6x6 tokens, windows of 4, block 1 global) with merging in `layers`, traced; weights inside.

    The model is shared by all tests of a process, which therefore must not change it.
    """
    return traced_once(method, variant or next(iter(method_class(method).VARIANTS)), layers, batch, opset)


@cache
def traced_once(method, variant, layers, batch, opset):
    """`traced`, from the cache of the test run."""

    encoder = tiny_encoder(image=(96, 96))
    with patched(encoder, make_method(method, 0.5, variant), layers):
        return onnx.load(traced_encoder(encoder, 96, batch=batch, opset=opset))
