"""Element types of all tensors of an ONNX graph, those of declared operators and in subgraphs included."""

from __future__ import annotations

from typing import Any

from structsam_export.rewrite.operators import FLOAT, INT32, SHARED, declared
from structsam_export.rewrite.subgraphs import bodies, captured

# Smaller constants stay in the graph: shape inference needs the values of shapes.
LARGE = 1 << 14


def tensor_types(model: Any) -> dict[str, int]:
    """Tensor of an `onnx.ModelProto` or of one of its subgraphs -> ONNX element type; unknown ones are not there.

    By ONNX's own inference, and for operators outside ONNX by `rewrite.operators`.
    """
    bare = skeleton(model)
    types = inferred(bare) | {t.name: t.data_type for t in model.graph.initializer}
    for node in model.graph.node:
        for body in bodies(node):
            types |= tensor_types(
                model_of(body, model, {name: types[name] for name in captured(node) if name in types})
            )
    return types


def inferred(bare: Any) -> dict[str, int]:
    """Types of a model's own tensors by inference; records those of declared operators in the model."""
    import onnx

    while True:
        graph = onnx.shape_inference.infer_shapes(bare).graph
        records = {v.name: v for v in (*graph.input, *graph.value_info, *graph.output)}
        types = {n: v.type.tensor_type.elem_type for n, v in records.items() if v.type.tensor_type.elem_type}
        more = [v for node in bare.graph.node if declared(node) for v in declared_outputs(node, records, types)]
        if not more:
            return types
        names = {v.name for v in more}
        rest = [v for v in bare.graph.value_info if v.name not in names]
        del bare.graph.value_info[:]
        bare.graph.value_info.extend([*rest, *more])


def declared_outputs(node: Any, records: dict[str, Any], types: dict[str, int]) -> list[Any]:
    """Records of the outputs of a declared operator whose types are not known yet but follow from its inputs."""
    import onnx

    operator = declared(node)
    if operator is None:
        return []
    known = {kind: types[name] for name, kind in zip(node.input, operator.inputs) if kind in SHARED and name in types}
    known |= {INT32: onnx.TensorProto.INT32, FLOAT: onnx.TensorProto.FLOAT}
    shapes = operator.shapes(node, [shape_of(records[name]) if name in records else None for name in node.input])
    return [
        onnx.helper.make_tensor_value_info(name, known[kind], shape)
        for name, kind, shape in zip(node.output, operator.outputs, shapes)
        if name and kind in known and name not in types
    ]


def shape_of(record: Any) -> list[int] | None:
    """The shape in an `onnx.ValueInfoProto`; None if a dimension is not a known number."""
    kind = record.type.tensor_type
    known = kind.HasField("shape") and all(d.HasField("dim_value") for d in kind.shape.dim)
    return [d.dim_value for d in kind.shape.dim] if known else None


def model_of(body: Any, model: Any, around: dict[str, int]) -> Any:
    """A subgraph as a model of its own; tensors that it captures, of the types in `around`, become inputs."""
    import onnx

    made = onnx.ModelProto(ir_version=model.ir_version, graph=body)
    made.opset_import.extend(model.opset_import)
    made.graph.input.extend(onnx.helper.make_tensor_value_info(name, elem, None) for name, elem in around.items())
    return made


def skeleton(model: Any) -> Any:
    """A copy in which large constants are inputs: enough to infer types, small enough to copy."""
    import onnx

    copy = onnx.ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.graph.name = model.graph.name
    copy.graph.node.extend(model.graph.node)
    for part in ("input", "output", "value_info"):
        getattr(copy.graph, part).extend(getattr(model.graph, part))
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.ByteSize() > LARGE:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            copy.graph.input.append(info)
        else:
            copy.graph.initializer.append(tensor)
    return copy
