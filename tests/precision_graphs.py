"""Tiny models as files, and what of a converted one can be looked up by name."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
from graphs import FLOAT, INT
from onnx import helper, numpy_helper

from structsam_export.precision import convert

NAMES = {1: "fp32", 10: "fp16", 16: "bf16", 7: "int64", 9: "bool"}


def saved(folder, nodes, inputs, outputs, strict=True, **constants):
    """A model as a file.

    Args:
        folder: where `model.onnx` goes.
        nodes: made by `graphs.node`, in order.
        inputs: name -> shape; floats, but for "i".
        outputs: names, separated by blanks.
        strict: whether ONNX's own inference must know all types; not where operators are not ONNX's.
        constants: name -> array, list or number; Python's floats become float32.
    """
    arrays = {name: np.asarray(value) for name, value in constants.items()}
    arrays = {name: value.astype(np.float32) if value.dtype == float else value for name, value in arrays.items()}
    graph = helper.make_graph(
        nodes,
        "tiny",
        [helper.make_tensor_value_info(n, INT if n == "i" else FLOAT, shape) for n, shape in inputs.items()],
        [
            helper.make_empty_tensor_value_info(name) if strict else helper.make_tensor_value_info(name, FLOAT, None)
            for name in outputs.split()
        ],
        [numpy_helper.from_array(value, name) for name, value in arrays.items()],
    )
    opsets = [helper.make_opsetid("", 18), *([] if strict else [helper.make_opsetid("com.microsoft", 1)])]
    model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    path = folder / "model.onnx"
    onnx.save(onnx.shape_inference.infer_shapes(model, strict_mode=strict), str(path))
    return path


def converted(path, kind="fp16", amax=None):
    """The model `convert` makes of a file, and what it says about it."""
    target = path.with_name(f"{kind}.onnx")
    result = convert(path, target, kind, amax)
    return onnx.load(str(target)), result


def types(model):
    """Element type of every tensor, by ONNX's own inference over the nodes alone."""
    bare = onnx.ModelProto.FromString(model.SerializeToString())
    del bare.graph.value_info[:]
    inferred = onnx.shape_inference.infer_shapes(bare, strict_mode=True).graph
    values = [*inferred.input, *inferred.value_info, *inferred.output]
    found = {v.name: v.type.tensor_type.elem_type for v in values}
    found |= {t.name: t.data_type for t in model.graph.initializer}
    return {name: NAMES[elem] for name, elem in found.items()}


def computes_in(model):
    """Type of each node's first float input, by the node's first output as it was named before."""
    kinds = types(model)
    found = {}
    for node in model.graph.node:
        floats = [kinds[n] for n in node.input if n and kinds[n] in ("fp32", "fp16", "bf16")]
        if floats and node.op_type != "Cast":
            found[node.name.removeprefix("make_")] = floats[0]
    return found


def casts(model):
    """(from, to) of all casts between float types."""
    kinds = types(model)
    floats = ("fp32", "fp16", "bf16")
    return [
        (n.input[0], n.output[0])
        for n in model.graph.node
        if n.op_type == "Cast" and kinds[n.input[0]] in floats and kinds[n.output[0]] in floats
    ]


def session(path, level=ort.GraphOptimizationLevel.ORT_ENABLE_ALL):
    """An ONNX Runtime session on one thread."""
    options = ort.SessionOptions()
    options.graph_optimization_level = level
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
