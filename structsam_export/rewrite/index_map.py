"""The index map of data-movement nodes: which element of their input each element of their output is.

Found by applying the nodes to an array that holds the number of each element.
"""

from __future__ import annotations

from typing import Any

from structsam_export.rewrite.match import constant, static_shape

PAD = -1  # the number of an element that a Pad puts in


def moved(node: Any, index: Any) -> Any | None:
    """A data-movement node applied to an integer array, of the shape of the node's input.

    Knows Reshape, Transpose, Squeeze, Unsqueeze, Slice, Gather by a constant, and Pad with a constant, whose elements
    become `PAD`. None for other nodes, and where a parameter of the node is computed.
    """
    import numpy as np

    op, shape = node.op, static_shape(node.outputs[0])
    if shape is None:
        return None
    if op in ("Reshape", "Squeeze", "Unsqueeze"):
        return index.reshape(shape)
    if op == "Transpose":
        return index.transpose(node.attrs.get("perm"))
    if op == "Gather":
        picked = constant(node.inputs[1])
        if picked is None or constant(node.inputs[0]) is not None:
            return None
        return np.take(index, np.reshape(picked, node.inputs[1].shape), axis=node.attrs.get("axis", 0))
    if op == "Slice":
        return sliced(node, index)
    if op == "Pad":
        widths = constant(node.inputs[1])
        if node.attrs.get("mode", "constant") != "constant" or len(node.inputs) > 3 or fill_of(node) is None:
            return None
        if widths is None or min(widths) < 0:
            return None
        half = len(widths) // 2
        return np.pad(index, list(zip(widths[:half], widths[half:])), constant_values=PAD)
    return None


def sliced(node: Any, index: Any) -> Any | None:
    """A Slice applied to an integer array; None if its bounds are computed or a step is not positive."""
    bounds = [constant(t) for t in node.inputs[1:]]
    if any(b is None for b in bounds):
        return None
    starts, ends = bounds[0] or [], bounds[1] or []
    axes = bounds[2] if len(bounds) > 2 and bounds[2] is not None else list(range(len(starts)))
    steps = bounds[3] if len(bounds) > 3 and bounds[3] is not None else [1] * len(starts)
    window = [slice(None)] * index.ndim
    for start, end, axis, stride in zip(starts, ends, axes, steps):
        if stride < 1:
            return None
        window[axis] = slice(start, end, stride)
    return index[tuple(window)]


def fill_of(node: Any) -> Any | None:
    """The number a Pad puts in; None if it is computed."""
    value = node.inputs[2] if len(node.inputs) > 2 else None
    if value is None or value.is_empty():
        return 0
    values = getattr(value, "values", None)
    return None if values is None else values.item()
