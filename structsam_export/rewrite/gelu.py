"""GELU in the order runtimes know it.

PyTorch's exporter writes x * (0.5 * (1 + erf(x / sqrt 2))). ONNX Runtime and TensorRT look for
(x * (1 + erf(x / sqrt 2))) * 0.5 and run that as one node instead of five passes over the widest tensor of a block.
The same to the last bit, as halving is exact (and as long as 2x does not overflow). ONNX has a Gelu operator from opset
20 on; the exporter uses it there.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.match import add, only_consumer, producer, take_over
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def apply(graph: gs.Graph) -> Fired:
    """Rewrite x * (0.5 * (1 + erf(..))) as (x * (1 + erf(..))) * 0.5."""
    fired, skipped = 0, list[str]()
    for node in list(graph.nodes):
        if node.op != "Erf" or (one_plus := only_consumer(graph, node.outputs[0])) is None or one_plus.op != "Add":
            continue
        halved = only_consumer(graph, one_plus.outputs[0])
        half = next((t for t in halved.inputs if is_half(t)), None) if halved is not None else None
        if halved is None or halved.op != "Mul" or half is None:
            continue
        last = only_consumer(graph, halved.outputs[0])
        scaled = producer(node.inputs[0], "Div") or producer(node.inputs[0], "Mul")
        x = scaled.inputs[0] if scaled is not None else None
        if last is None or last.op != "Mul" or not any(t is x for t in last.inputs):
            skipped.append(f"{node.name}: 0.5 (1 + erf) has no single reader that multiplies what erf was taken of")
            continue
        out = last.outputs[0]
        whole = add(graph, "Mul", [x, one_plus.outputs[0]], out, one_plus.outputs[0].shape)
        result = add(graph, "Mul", [whole, half], out, out.shape)
        take_over(result.inputs[0], out)
        fired += 1
    return Fired(fired, tuple(skipped))


def is_half(tensor: Any) -> bool:
    """Whether a tensor is the constant 0.5."""
    values = getattr(tensor, "values", None)
    return values is not None and values.size == 1 and float(values.reshape(-1)[0]) == 0.5
