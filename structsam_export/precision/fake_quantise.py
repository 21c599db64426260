"""The numbers of a low-precision graph where no kernels for it exist: FP32 arithmetic, every result rounded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from structsam_export.precision.calibrate import MOVES
from structsam_export.precision.inference import tensor_types
from structsam_export.precision.typed import replace_nodes
from structsam_export.reading import content_errors
from structsam_export.rewrite.subgraphs import bodies

FLOAT = 1  # onnx.TensorProto.FLOAT


def fake_quantised(source: Path, target: Path) -> None:
    """Write a float32 graph that computes what a graph of `convert` stores.

    Every FP16 or BF16 tensor becomes a float32 one that is cast to its type and back, so that it holds the same
    values; kernels are those of FP32, as accumulators are on a GPU. ONNX Runtime's CPU provider has no BF16 kernels,
    and it runs most of FP16 in FP32 and takes casts between such nodes out, so that little more than the weights is
    rounded. Engines fuse nodes and round less than this: it is the worst case. For validation only, as it is slow.

    Args:
        source: file of `convert`, or what `rewrite.apply_form` made of it.
        target: file to write, in the same folder if weights lie beside `source`.

    Raises:
        ArtifactError: no ONNX, or a graph that cannot be changed.
    """
    import onnx

    from structsam_export.files import disk_errors
    from structsam_export.graphs import load

    model = load(source)
    with content_errors(source):
        fake_quantise(model.graph, low_types(model))
    with disk_errors(target.parent):
        onnx.save(model, str(target))


def low_types(model: Any) -> dict[str, int]:
    """FP16 and BF16 tensors of an `onnx.ModelProto`, those in subgraphs included -> ONNX element type."""
    import onnx

    kinds = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16
    return {name: elem for name, elem in tensor_types(model).items() if elem in kinds}


def fake_quantise(graph: Any, low: dict[str, int]) -> None:
    """Turn an `onnx.GraphProto` and its subgraphs into float32, in place; `low` are its tensors of 16 bits."""
    import onnx

    nodes: list[Any] = [
        onnx.helper.make_node("Cast", [f"{t.name}.stored"], [t.name], to=FLOAT)
        for t in graph.initializer
        if t.name in low
    ]
    for node in graph.node:
        copy = onnx.NodeProto.FromString(node.SerializeToString())
        for body in bodies(copy):
            fake_quantise(body, low)
        nodes += rounded(copy, {name: low[name] for name in node.output if name in low})
    for tensor in graph.initializer:
        if tensor.name in low:
            tensor.name += ".stored"
    replace_nodes(graph, nodes)
    for record in (*graph.value_info, *graph.input, *graph.output):
        if record.name in low:
            record.type.tensor_type.elem_type = FLOAT


def rounded(node: Any, low: dict[str, int]) -> list[Any]:
    """A node in float32, and the casts that round those of its outputs that are not float32."""
    from onnx.helper import make_node

    if not low:
        return [node]
    result = [node]
    for attribute in node.attribute:
        if node.op_type == "Cast" and attribute.name == "to":
            attribute.i = FLOAT
        elif node.op_type == "ConstantOfShape" and attribute.name == "value":
            attribute.t.CopyFrom(float32(attribute.t))
    if node.op_type in MOVES or bodies(node):
        return result  # what it moves, or what its subgraphs make, is rounded already
    for slot, name in enumerate(list(node.output)):
        if name in low:
            node.output[slot] = f"{name}.exact"
            result.append(make_node("Cast", [f"{name}.exact"], [f"{name}.rounded"], to=low[name]))
            result.append(make_node("Cast", [f"{name}.rounded"], [name], to=FLOAT))
    return result


def float32(tensor: Any) -> Any:
    """A 16-bit `onnx.TensorProto` as a float32 one."""
    import numpy as np
    from onnx import TensorProto, numpy_helper

    from structsam_export.precision.numbers import Kind, as_float32

    kind: Kind = "fp16" if tensor.data_type == TensorProto.FLOAT16 else "bf16"
    values = as_float32(np.frombuffer(tensor.raw_data, "<u2"), kind).reshape(tuple(tensor.dims))
    return numpy_helper.from_array(values, tensor.name)
