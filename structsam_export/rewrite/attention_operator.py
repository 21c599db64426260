"""Attention as one ONNX operator (opset 23), which TensorRT takes from 10.14 on.

TensorRT wants keys and values of equal head size, and ours carry relative positions beside the keys: values are padded
with zeros, and the zero channels of the result are cut off again, which leaves all numbers as they were.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.match import add, floats, integers, static_shape, take_over
from structsam_export.rewrite.results import Fired
from structsam_export.rewrite.softmax_attention import SoftmaxAttention, attentions, reshaped, transposed

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

OPSET = 23


def apply(graph: gs.Graph) -> Fired:
    """Rewrite Softmax(q.k') . v as Attention(q, k, v) over (batch, heads, tokens, channels)."""
    fired = 0
    matches, skipped = attentions(graph)
    for found in matches:
        batch = found.batch if len(found.batch) == 2 else [1, *found.batch]
        if len(batch) != 2:
            skipped.append(f"{found.out.name}: {len(found.batch) + 2} axes, not 3 or 4")
            continue
        one_operator(graph, found, batch)
        fired += 1
    return Fired(fired, tuple(skipped))


def one_operator(graph: gs.Graph, found: SoftmaxAttention, batch: list[int]) -> None:
    """Let an Attention node make this attention's output; `batch` is (batch, heads)."""
    n, depth = (static_shape(found.q) or [])[-2:]
    m, width = (static_shape(found.v) or [])[-2:]
    q = reshaped(graph, found.q, [*batch, n, depth])
    k = reshaped(graph, transposed(graph, found.transposed_keys), [*batch, m, depth])
    v = padded(graph, reshaped(graph, found.v, [*batch, m, width]), depth)
    wide = max(width, depth)
    y = add(graph, "Attention", [q, k, v], found.out, [*batch, n, wide], scale=1.0)
    if wide > width:
        bounds = [integers(graph, f"{y.name}.{name}", [value]) for name, value in (("0", 0), ("1", width), ("2", 3))]
        y = add(graph, "Slice", [y, *bounds], found.out, [*batch, n, width])
    shape = static_shape(found.out) or []
    if static_shape(y) != shape:
        y = add(graph, "Reshape", [y, integers(graph, f"{y.name}.shape", shape)], found.out, shape)
    take_over(y.inputs[0], found.out)


def padded(graph: gs.Graph, v: Any, depth: int) -> Any:
    """Values (B, heads, m, e) with zeros up to `depth` channels."""
    *rest, width = static_shape(v) or []
    if width >= depth:
        return v
    zeros = floats(graph, f"{v.name}.zero", 0, v)
    pads = integers(graph, f"{v.name}.pads", [0] * 7 + [depth - width])
    return add(graph, "Pad", [v, pads, zeros], v, [*rest, depth])
