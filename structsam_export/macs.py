"""Multiply-accumulates of the image encoder: closed forms, and counted on an ONNX graph.

Counting rules are fvcore's: convolution, linear, matmul and einsum count 1 per multiply-add, LayerNorm 5 per element;
softmax, sorting and gathering count nothing. LayerNorm2d counts nothing in the papers' form either, nor as traced, but
5 per element once it has been rewritten as a LayerNormalization. `paper_macs` places merging as the papers do (qkv on
n tokens, proj on N); the exported graph also runs proj on n, which `graph_macs` shows.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

# A Scan counts what its body counts, each time it runs.
COUNTED = ("MatMul", "Gemm", "Einsum", "Conv", "LayerNormalization", "Attention", "MultiHeadAttention", "Scan")

if TYPE_CHECKING:
    from structsam_export.methods import Method
    from structsam_export.models.geometry import EncoderGeometry
    from structsam_export.patch.roles import Role


def paper_macs(
    geometry: EncoderGeometry,
    method: Method | Mapping[int, Method] | None = None,
    layers: Iterable[int] = (),
    mlp: Any = None,
) -> int:
    """MACs of one image through the encoder, as the papers count them.

    Args:
        geometry: the encoder's sizes.
        method: one method for `layers`, or a mapping from block to method; None for the dense model.
        layers: blocks that are patched, not read with a mapping.
        mlp: MLP policy of `methods.mlp`, or None.
    """
    from dataclasses import replace

    from structsam_export.patch import blocks_of
    from structsam_export.patch.roles import Role, Shared, assign

    g = geometry
    T, D = g.tokens_global, g.dim
    stem = T * D * 3 * g.patch_size**2
    neck = T * D * g.out_channels + 9 * T * g.out_channels**2
    blocks = blocks_of(method, layers) if method is not None else {}
    roles = assign(g, blocks, mlp)
    for i, m in blocks.items():
        if m.KIND == "keys":  # theirs leaves out keys in windows as well, which have no role here
            roles[i] = replace(roles.get(i) or Role(i, Shared(), g.layout(i), g.windows[i]), attend=m)
    kept = next((r.keep.kept(r.layout.grid) for r in roles.values() if r.keep is not None), 0)
    return stem + neck + sum(block_macs(g, i, roles.get(i), kept) for i in range(g.depth))


def block_macs(geometry: EncoderGeometry, layer: int, role: Role | None = None, kept: int = 0) -> int:
    """MACs of one block for one image; `kept` tokens go through an MLP that only some tokens get."""
    g = geometry
    layout = role.layout if role is not None else g.layout(layer)
    attend = role.attend if role is not None else None
    T, D, d = layout.grid[0] * layout.grid[1], g.dim, g.head_dim
    N = layout.tokens
    groups = attend.groups(layout) if attend is not None and attend.KIND == "merge" else [(layout.calls, N)]
    total = 0.0
    for calls, n in groups:
        keys = attend.paper_keys(layout) if attend is not None and attend.KIND == "keys" else n
        total += calls * (3 * n * D * D + N * D * D)  # qkv on n tokens, proj on N
        total += 2 * calls * g.heads * n * keys * d
        total += calls * g.heads * n * sum(layout.side) * d  # relative positions
    policy = role.mlp if role is not None else ""
    rows = {"": T, "plan": sum(calls * n for calls, n in groups), "rank": kept}[policy]
    total += 2 * rows * D * g.mlp_dim + 10 * T * D  # LayerNorm: 5 per element, two in a block
    return round(total) + (attend.macs(layout, d) if attend is not None else 0)


def graph_macs(path: Path) -> int:
    """MACs of an exported encoder: every operator of COUNTED in the file.

    Raises:
        ValueError: an operand has no static shape.
    """
    import onnx

    return macs_of(onnx.load(str(path), load_external_data=False).graph, {})


def macs_of(graph: Any, around: dict[str, list[int]]) -> int:
    """MACs of a graph; `around` are the shapes of the tensors of the graph it is in, if it is a loop's body."""
    shapes: dict[str, list[int]] = around | {t.name: list(t.dims) for t in graph.initializer}
    for value in [*graph.input, *graph.output, *graph.value_info]:
        shapes[value.name] = [d.dim_value for d in value.type.tensor_type.shape.dim]
    return sum(node_macs(node, shapes) for node in graph.node)


def node_macs(node: Any, shapes: dict[str, list[int]]) -> int:
    """MACs of one ONNX node; 0 for operators that are not counted."""
    from math import prod

    if node.op_type not in COUNTED:
        return 0
    if node.op_type == "Scan":
        body = next(attr.g for attr in node.attribute if attr.name == "body")
        return shapes[node.input[0]][0] * macs_of(body, shapes)
    try:
        a, b, out = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    except KeyError as missing:
        raise ValueError(f"{node.op_type} {node.name}: no shape for {missing}") from None
    if node.op_type == "LayerNormalization":
        return 5 * prod(a)
    if node.op_type in ("Attention", "MultiHeadAttention"):
        # Queries (.., n, c) and keys (.., m, c), values (.., m, e), heads among the channels or an axis of their own.
        return (prod(a) * b[-2]) + (prod(out) * b[-2])
    if node.op_type == "Conv":
        return prod(out) * prod(b[1:])
    if node.op_type == "Einsum":
        terms = node.attribute[0].s.decode().replace(" ", "").split("->")[0].split(",")
        sizes = {letter: size for term, shape in zip(terms, (a, b)) for letter, size in zip(term, shape)}
        return prod(sizes.values())
    return prod(out) * a[-1]
