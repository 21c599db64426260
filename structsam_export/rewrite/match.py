"""Small questions rules ask of a graph."""

from __future__ import annotations

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
