"""SAM's LayerNorm2d -> Transpose, LayerNormalization, Transpose.

Its nine nodes normalise the channels of (B, C, H, W). One LayerNormalization keeps the sums of FP16 graphs in FP32 and
has a kernel of its own on every runtime.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.match import add, fresh, only_consumer, producer, static_shape, take_over
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def apply(graph: gs.Graph) -> Fired:
    """Rewrite (x - mean) / sqrt(mean((x - mean)^2) + eps) * weight + bias over axis 1."""
    import numpy as np
    import onnx_graphsurgeon as gs

    fired, skipped = 0, list[str]()
    for node in list(graph.nodes):
        if node.op != "Sqrt" or (found := channel_norm(graph, node)) is None:
            continue
        x, epsilon, weight, bias, out = found
        shape = static_shape(x)
        known = shape is not None and len(shape) == 4 and static_shape(out) == shape
        if shape is None or not known or not (by_channel(weight, shape[1]) and by_channel(bias, shape[1])):
            skipped.append(f"{node.name}: not (B, C, H, W) of known shape with one weight a channel")
            continue
        B, C, H, W = shape
        affine = [gs.Constant(fresh(graph, f"{out.name}.{n}"), np.ascontiguousarray(v.reshape(C)))
                  for n, v in (("weight", weight), ("bias", bias))]  # fmt: skip
        last = add(graph, "Transpose", [x], x, [B, H, W, C], perm=[0, 2, 3, 1])
        normed = add(graph, "LayerNormalization", [last, *affine], x, [B, H, W, C], axis=-1, epsilon=epsilon)
        first = add(graph, "Transpose", [normed], x, shape, perm=[0, 3, 1, 2])
        take_over(first.inputs[0], out)
        fired += 1
    return Fired(fired, tuple(skipped))


def channel_norm(graph: gs.Graph, root: Any) -> tuple[Any, float, Any, Any, Any] | None:
    """(x, epsilon, weight, bias, output) of the normalisation whose deviation `root` (a Sqrt) takes, or None."""
    variance = producer(root.inputs[0], "Add")
    mean = producer(variance.inputs[0], "ReduceMean") if variance is not None else None
    power = producer(mean.inputs[0], "Pow") if mean is not None else None
    centred = producer(power.inputs[0], "Sub") if power is not None else None
    own_mean = producer(centred.inputs[1], "ReduceMean") if centred is not None else None
    if mean is None or power is None or centred is None or own_mean is None:
        return None
    if own_mean.inputs[0] is not centred.inputs[0] or not is_number(power.inputs[1], 2):
        return None
    if not (over_channels(mean) and over_channels(own_mean)):
        return None
    div = only_consumer(graph, root.outputs[0])
    scaled = only_consumer(graph, div.outputs[0]) if div is not None else None
    shifted = only_consumer(graph, scaled.outputs[0]) if scaled is not None else None
    if div is None or scaled is None or shifted is None or [div.op, scaled.op, shifted.op] != ["Div", "Mul", "Add"]:
        return None
    if div.inputs[0] is not centred.outputs[0]:
        return None
    epsilon, weight, bias = (values_of(n) for n in (variance, scaled, shifted))
    if epsilon is None or weight is None or bias is None or epsilon.size != 1:
        return None
    return centred.inputs[0], float(epsilon.reshape(-1)[0]), weight, bias, shifted.outputs[0]


def values_of(node: Any) -> Any | None:
    """The constant operand of a node, or None."""
    return next((t.values for t in node.inputs if getattr(t, "values", None) is not None), None)


def over_channels(mean: Any) -> bool:
    """Whether a ReduceMean is one over axis 1, which it keeps."""
    return len(mean.inputs) == 2 and is_number(mean.inputs[1], 1) and mean.attrs.get("keepdims", 1) == 1


def is_number(tensor: Any, number: float) -> bool:
    """Whether a tensor is a constant of one element, this number."""
    values = getattr(tensor, "values", None)
    return values is not None and values.size == 1 and float(values.reshape(-1)[0]) == number


def by_channel(values: Any, channels: int) -> bool:
    """Whether an array holds one value for each channel of (B, C, H, W)."""
    return bool(values.size == channels and values.shape[-3:] == (channels, 1, 1))
