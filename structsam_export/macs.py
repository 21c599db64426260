"""Multiply-accumulates of the image encoder: closed forms, and counted on an ONNX graph.

Counting rules are fvcore's: convolution, linear, matmul and einsum count 1 per multiply-add, LayerNorm 5 per element;
softmax, sorting, gathering and LayerNorm2d count nothing. `paper_macs` places merging as the papers do (qkv on n
tokens, proj on N); the exported graph also runs proj on n, which `graph_macs` shows.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from structsam_export.methods import Method
    from structsam_export.models.geometry import EncoderGeometry


def paper_macs(geometry: EncoderGeometry, method: Method | None = None, layers: Iterable[int] = ()) -> int:
    """MACs of one image through the encoder, merged in `layers` (none: the dense model)."""
    g = geometry
    T, D = g.tokens_global, g.dim
    stem = T * D * 3 * g.patch_size**2
    neck = T * D * g.out_channels + 9 * T * g.out_channels**2
    merged = set(layers) if method is not None else set()
    blocks = (block_macs(g, i, method if i in merged else None) for i in range(g.depth))
    return stem + neck + sum(blocks)


def block_macs(geometry: EncoderGeometry, layer: int, method: Method | None) -> int:
    """MACs of one block for one image."""
    g, layout = geometry, geometry.layout(layer)
    T, D, d = g.tokens_global, g.dim, g.head_dim
    calls, N = layout.calls, layout.tokens
    removed = method.removed(layout) if method is not None else 0
    n = N - removed
    linear = calls * (3 * n * D * D + N * D * D) + 2 * T * D * g.mlp_dim
    attention = 2 * calls * g.heads * n * n * d
    position = calls * g.heads * n * sum(layout.side) * d
    norms = 2 * 5 * T * D
    choose = method.macs(layout, d) if method is not None and removed else 0
    return linear + attention + position + norms + choose


def graph_macs(path: Path) -> int:
    """MACs of an exported encoder: every MatMul, Gemm, Einsum, Conv and LayerNormalization of the file.

    Raises:
        ValueError: an operand has no static shape.
    """
    import onnx

    graph = onnx.load(str(path), load_external_data=False).graph
    shapes: dict[str, list[int]] = {t.name: list(t.dims) for t in graph.initializer}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        shapes[value.name] = [d.dim_value for d in value.type.tensor_type.shape.dim]
    return sum(node_macs(node, shapes) for node in graph.node)


def node_macs(node: Any, shapes: dict[str, list[int]]) -> int:
    """MACs of one ONNX node; 0 for operators that are not counted."""
    from math import prod

    if node.op_type not in ("MatMul", "Gemm", "Einsum", "Conv", "LayerNormalization"):
        return 0
    try:
        a, b, out = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    except KeyError as missing:
        raise ValueError(f"{node.op_type} {node.name}: no shape for {missing}") from None
    if node.op_type == "LayerNormalization":
        return 5 * prod(a)
    if node.op_type == "Conv":
        return prod(out) * prod(b[1:])
    if node.op_type == "Einsum":
        terms = node.attribute[0].s.decode().replace(" ", "").split("->")[0].split(",")
        sizes = {letter: size for term, shape in zip(terms, (a, b)) for letter, size in zip(term, shape)}
        return prod(sizes.values())
    return prod(out) * a[-1]
