"""Operators outside ONNX that rules put into graphs, and what ONNX's own definitions would say of them.

ONNX's checks, type inference and our typing (`precision`) know nothing of such operators but what is declared here.
A rule that puts in another one adds a line to OPERATORS.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

FLOATS = ("tensor(float)", "tensor(float16)", "tensor(bfloat16)")
SHARED = ("T", "R")  # names of float types
INT32, FLOAT = "tensor(int32)", "tensor(float)"
Shape = list[int] | None


@dataclass(frozen=True)
class Operator:
    """The definition of one operator.

    `inputs` and `outputs` name the type of each tensor, in order: "T" (or "R") for the one float type, out of `floats`,
    that all tensors so named share, or a type of ONNX such as "tensor(int32)". `shapes` gives the shapes of the outputs
    from a node (`onnx.NodeProto`) and the shapes of its inputs; None stands for a shape that is not known.
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
            return [self.floats if kind in SHARED else (kind,) for kind in kinds[:count]]

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


def same_as(which: int) -> Callable[[Any, list[Shape]], list[Shape]]:
    """Shapes of an operator whose one output has the shape of an input."""
    return lambda node, inputs: [inputs[which]]


def grid_shape(node: Any, inputs: list[Shape]) -> list[Shape]:
    """(B, H, W, D) -> (B, H, W)."""
    return [None if inputs[0] is None else inputs[0][:3]]


def plan_shapes(node: Any, inputs: list[Shape]) -> list[Shape]:
    """(B, H, W) -> (B * windows, n), (B * windows, N)."""
    if inputs[0] is None:
        return [None, None]
    given = {a.name: a.i for a in node.attribute}
    (B, H, W), h, w = inputs[0], given["window_h"], given["window_w"]
    calls = B * -(-H // h) * -(-W // w)
    return [[calls, h * w - 3 * given["merged"]], [calls, h * w]]


def merged_shape(node: Any, inputs: list[Shape]) -> list[Shape]:
    """(B, H, W, D), (B * windows, n) -> (B * windows, n, D)."""
    y, pos = inputs
    return [None if y is None or pos is None else [*pos, y[3]]]


def fused(op: str, inputs: tuple[str, ...], outputs: tuple[str, ...], shapes: Any) -> Operator:
    """One of our own operators (`plugins/README.md`)."""
    return Operator("structsam", op, inputs, outputs, shapes)


FUSED = (
    fused("TokenEnergy", ("T",), (FLOAT,), grid_shape),
    fused("MergePlan", (FLOAT,), (INT32, INT32), plan_shapes),
    fused("TokenMerge", ("T", INT32), ("T",), merged_shape),
    fused("TokenUnmerge", ("T", INT32, "R"), ("R",), same_as(2)),
    fused("RelposAttention", ("T", "T", "T", "T", INT32), ("T",), same_as(0)),
)
OPERATORS = {(operator.domain, operator.op): operator for operator in (MULTI_HEAD_ATTENTION, *FUSED)}
ONNX = ("", "ai.onnx")  # domains of ONNX itself


def declared(node: Any) -> Operator | None:
    """The definition of a node's operator (`onnx.NodeProto`); None for ONNX's own and for those nobody declared."""
    return OPERATORS.get((node.domain, node.op_type))
