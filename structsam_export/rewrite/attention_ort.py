"""Attention as ONNX Runtime's own operator, which never holds the whole map of scores.

`com.microsoft.MultiHeadAttention` runs blockwise (flash attention) on CPU and CUDA. Its tensors are
(batch, tokens, heads x channels). Where heads were brought to the front by transposes, those go away; where heads and
batch are one axis already, each becomes an entry of the batch with a single head.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.match import add, integers, only_consumer, producer, static_shape, take_over
from structsam_export.rewrite.operators import MULTI_HEAD_ATTENTION
from structsam_export.rewrite.results import Fired
from structsam_export.rewrite.softmax_attention import SoftmaxAttention, attentions, reshaped, transposed

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

HEADS_TO_THE_FRONT = [0, 2, 1, 3]


def apply(graph: gs.Graph) -> Fired:
    """Rewrite Softmax(q.k') . v as MultiHeadAttention(q, k, v)."""
    matches, skipped = attentions(graph)
    for found in matches:
        one_operator(graph, found)
    return Fired(len(matches), tuple(skipped))


def one_operator(graph: gs.Graph, found: SoftmaxAttention) -> None:
    """Let a MultiHeadAttention node make this attention's output."""
    after = only_consumer(graph, found.out)
    tensors = [found.q, transposed(graph, found.transposed_keys), found.v]
    parts = [before_heads(t) for t in tensors]
    heads = found.batch[1] if len(found.batch) == 2 else 0
    if heads and all(t is not None for t in parts) and after is not None and moves_heads(after):
        out = after.outputs[0]
        rows = [[*(static_shape(t) or [])[:2], heads * (static_shape(t) or [])[3]] for t in parts]
    else:
        heads, parts, out = 1, tensors, found.out
        rows = [collapsed(static_shape(t) or []) for t in tensors]
    flat = [reshaped(graph, tensor, shape) for tensor, shape in zip(parts, rows)]
    n, width = rows[0][1], rows[2][2]
    y = add(graph, MULTI_HEAD_ATTENTION.op, flat, out, [rows[0][0], n, width], num_heads=heads, scale=1.0)
    y.inputs[0].domain = MULTI_HEAD_ATTENTION.domain
    shape = static_shape(out) or []
    y = add(graph, "Reshape", [y, integers(graph, f"{y.name}.shape", shape)], out, shape)
    take_over(y.inputs[0], out)


def before_heads(tensor: Any) -> Any | None:
    """The (batch, tokens, heads, channels) tensor that was transposed to make this one, or None."""
    made = producer(tensor, "Transpose")
    return made.inputs[0] if made is not None and moves_heads(made) else None


def moves_heads(node: Any) -> bool:
    """Whether a node swaps the axes of heads and tokens."""
    return node.op == "Transpose" and list(node.attrs["perm"]) == HEADS_TO_THE_FRONT


def collapsed(shape: list[int]) -> list[int]:
    """(*batch, tokens, channels) -> (all of batch, tokens, channels)."""
    from math import prod

    return [prod(shape[:-2]), *shape[-2:]]
