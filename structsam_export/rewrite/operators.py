"""Operators outside ONNX that rules put into graphs, and what ONNX's own definitions would say of them.

ONNX's checks, type inference and our typing (`precision`) know nothing of such operators but what is declared here.
A rule that puts in another one adds a line to OPERATORS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FLOATS = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)")
Shape = list[int] | None


@dataclass(frozen=True)
class Operator:
    """The definition of one operator.

    `inputs` and `outputs` name the type of each tensor, in order: "T" for the one float type, out of `floats`, that all
    tensors so named share, or a type of ONNX such as "tensor(int32)". `shapes` gives the shapes of the outputs from a
    node (`onnx.NodeProto`) and the shapes of its inputs; None stands for a shape that is not known.
    """

    domain: str
    op: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    shapes: Callable[[Any, list[Shape]], list[Shape]]
    floats: tuple[str, ...] = FLOATS

    def formals(self, inputs: int, outputs: int) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
        """Types that are allowed at each of so many inputs and outputs."""

        def each(kinds: tuple[str, ...], count: int) -> list[tuple[str, ...]]:
            return [self.floats if kind == "T" else (kind,) for kind in kinds[:count]]

        return each(self.inputs, inputs), each(self.outputs, outputs)


def attention_shapes(node: Any, inputs: list[Shape]) -> list[Shape]:
    """(B, n, heads * d), .., (B, m, heads * e) -> (B, n, heads * e); the other outputs are not used here."""
    q, v = inputs[0], inputs[2]
    return [None if q is None or v is None else [*q[:2], v[2]]] + [None] * (len(node.output) - 1)


MULTI_HEAD_ATTENTION = Operator(
    domain="com.microsoft",
    op="MultiHeadAttention",
    # query, key, value, bias, key_padding_mask, attention_bias, past_key, past_value
    inputs=("T", "T", "T", "T", "tensor(int32)", "T", "T", "T"),
    outputs=("T", "T", "T"),
    shapes=attention_shapes,
)
OPERATORS = {(operator.domain, operator.op): operator for operator in (MULTI_HEAD_ATTENTION,)}
ONNX = ("", "ai.onnx")  # domains of ONNX itself


def declared(node: Any) -> Operator | None:
    """The definition of a node's operator (`onnx.NodeProto`); None for ONNX's own and for those nobody declared."""
    return OPERATORS.get((node.domain, node.op_type))
