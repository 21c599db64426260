"""What rules ask of a graph, and the nodes and constants that they put into it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def producer(tensor: Any, op: str) -> Any | None:
    """The node of type `op` that makes this tensor, or None."""
    made_by = tensor.inputs[0] if tensor.inputs else None
    return made_by if made_by is not None and made_by.op == op else None


def only_consumer(graph: gs.Graph, tensor: Any) -> Any | None:
    """The one node that reads this tensor; None if there are several or it is a graph output."""
    is_output = any(tensor is out for out in graph.outputs)
    return tensor.outputs[0] if len(tensor.outputs) == 1 and not is_output else None


def static_shape(tensor: Any) -> list[int] | None:
    """The tensor's shape if every dimension is a known number."""
    shape = tensor.shape
    return list(shape) if shape is not None and all(isinstance(d, int) for d in shape) else None


def constant(tensor: Any) -> list[int] | None:
    """The integers of a constant tensor, flattened; None if it is computed."""
    values = getattr(tensor, "values", None)
    return None if values is None else [int(v) for v in values.flatten()]


def integers(graph: gs.Graph, name: str, values: Any) -> Any:
    """A new int64 constant with a name no other tensor has."""
    import numpy as np
    import onnx_graphsurgeon as gs

    return gs.Constant(fresh(graph, name), np.asarray(values, dtype=np.int64))


def floats(graph: gs.Graph, name: str, values: Any, like: Any) -> Any:
    """A new constant in the float type of the tensor `like` (FP32, FP16 or BF16), with a name no other tensor has."""
    import numpy as np
    import onnx_graphsurgeon as gs

    return gs.Constant(fresh(graph, name), np.asarray(values).astype(numpy_type(like)))


def numpy_type(tensor: Any) -> Any:
    """A tensor's type for numpy; onnx-graphsurgeon holds BF16, which numpy lacks, as ONNX's number for it."""
    import onnx

    dtype = tensor.dtype
    return onnx.helper.tensor_dtype_to_np_dtype(dtype) if isinstance(dtype, int) else dtype


def has_16_bit_floats(node: Any) -> bool:
    """Whether a node reads or makes FP16 or BF16."""
    from onnx import TensorProto
    from onnx_graphsurgeon.exporters.onnx_exporter import dtype_to_onnx

    kinds = {dtype_to_onnx(t.dtype) for t in (*node.inputs, *node.outputs) if t.dtype is not None}
    return bool(kinds & {TensorProto.FLOAT16, TensorProto.BFLOAT16})


@contextmanager
def errors_only() -> Iterator[None]:
    """Keep onnx-graphsurgeon from printing warnings."""
    from onnx_graphsurgeon.logger import G_LOGGER

    severity = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.ERROR
    try:
        yield
    finally:
        G_LOGGER.severity = severity


def fresh(graph: gs.Graph, name: str) -> str:
    """`name`, or `name` with a number, that no tensor and no node of this graph has."""
    taken = graph.tensors().keys() | {node.name for node in graph.nodes}
    number, candidate = 0, name
    while candidate in taken:
        number += 1
        candidate = f"{name}.{number}"
    return candidate


def add(
    graph: gs.Graph, op: str, inputs: list[Any], like: Any, shape: list[int], dtype: Any = None, **attrs: Any
) -> Any:
    """Append a node and return its output, named after `like`."""
    import onnx_graphsurgeon as gs

    out = gs.Variable(fresh(graph, f"{like.name}.{op.lower()}"), dtype=dtype or like.dtype, shape=shape)
    graph.nodes.append(gs.Node(op, name=out.name, attrs=attrs, inputs=inputs, outputs=[out]))
    return out


def take_over(node: Any, tensor: Any) -> None:
    """Detach `tensor` from the node that made it and let `node` make it instead."""
    tensor.inputs.clear()
    node.outputs = [tensor]
