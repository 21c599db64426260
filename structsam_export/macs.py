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

from structsam_export.roles import WindowGroup, assign, blocks_of

# A Scan counts what its body counts, each time it runs.
COUNTED = (
    *("MatMul", "Gemm", "Einsum", "Conv", "LayerNormalization", "Attention", "MultiHeadAttention", "Scan"),
    *("RelposAttention", "TokenEnergy"),
)

if TYPE_CHECKING:
    from structsam_export.geometry import EncoderGeometry
    from structsam_export.roles import Method, MLPPolicy, Role
    from structsam_export.schedule import Schedule


def paper_macs(
    geometry: EncoderGeometry,
    method: Method | Mapping[int, Method] | None = None,
    layers: Iterable[int] = (),
    mlp: MLPPolicy | None = None,
) -> int:
    """MACs of one image through the encoder, as the papers count them.

    Args:
        geometry: the encoder's sizes.
        method: one method for `layers`, or a mapping from block to method; None for the dense model.
        layers: blocks that are patched, not read with a mapping.
        mlp: MLP policy of `methods.mlp`, or None.
    """
    blocks = blocks_of(method, layers) if method is not None else {}
    return encoder_macs(geometry, blocks, assign(geometry, blocks, mlp))


def scheduled_macs(geometry: EncoderGeometry, schedule: Schedule) -> int:
    """As `paper_macs`, for what a configuration was resolved to on this encoder."""
    return encoder_macs(geometry, schedule.blocks, schedule.roles)


def encoder_macs(geometry: EncoderGeometry, blocks: Mapping[int, Method], roles: Mapping[int, Role]) -> int:
    """As `paper_macs`, for the methods of all blocks and the roles assigned to them."""
    g, T = geometry, geometry.tokens_global
    stem = T * g.dim * 3 * g.patch_size**2
    neck = T * g.dim * g.out_channels + 9 * T * g.out_channels**2
    other = stem + neck if g.other_macs is None else g.other_macs
    return other + sum(block_macs(g, i, blocks.get(i), roles.get(i)) for i in range(g.depth))


def block_macs(geometry: EncoderGeometry, layer: int, method: Method | None = None, role: Role | None = None) -> int:
    """MACs of one block for one image.

    Args:
        geometry: the encoder's sizes.
        layer: number of the block.
        method: the method asked for in this block, or None. Papers may count it even where the block stays stock.
        role: what the block does differently, or None.
    """
    g, D, d = geometry, geometry.dim, geometry.head_dim
    grid = g.window_grid(layer) if role is None else role.grid
    N, T = grid.tokens, grid.real_tokens
    groups = [WindowGroup(grid.windows, N, N)] if method is None else method.window_groups(grid)
    P = g.prefix  # class token and registers, which are part of every sum
    total = 0.0
    for group in groups:
        windows, n = group.windows, group.queries + P
        total += windows * (3 * n * D * D + (N + P) * D * D)  # qkv on n tokens, proj on N
        total += 2 * windows * g.heads * n * (group.keys + P) * d
        total += windows * g.heads * n * sum(grid.window_shape) * d * g.positions
    rows = T if role is None or role.mlp is None else role.mlp.rows(grid, groups)
    total += 2 * (rows + P) * D * g.mlp_dim + 10 * (T + P) * D  # LayerNorm: 5 per element, two in a block
    return round(total) + (role.method.macs(grid, d) if role is not None and role.method is not None else 0)


def graph_macs(path: Path) -> int:
    """MACs of an exported encoder: every operator of COUNTED in the file.

    Raises:
        ValueError: an operand has no static shape.
    """
    from structsam_export.graphs import load

    return macs_of(load(path).graph, {})


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
    if node.op_type == "TokenEnergy":  # two 3x3 kernels for every channel of a head
        heads = next(attr.i for attr in node.attribute if attr.name == "heads")
        return 2 * 9 * prod(shapes[node.input[0]]) // int(heads)
    try:
        a, b, out = (shapes[name] for name in (node.input[0], node.input[1], node.output[0]))
    except KeyError as missing:
        raise ValueError(f"{node.op_type} {node.name}: no shape for {missing}") from None
    if node.op_type == "LayerNormalization":
        return 5 * prod(a)
    if node.op_type in ("Attention", "MultiHeadAttention"):
        # Queries (.., n, c) and keys (.., m, c), values (.., m, e), heads among the channels or an axis of their own.
        return (prod(a) * b[-2]) + (prod(out) * b[-2])
    if node.op_type == "RelposAttention":  # scores and values; the product with relative positions is a node of its own
        return 2 * prod(a) * a[1]
    if node.op_type == "Conv":
        return prod(out) * prod(b[1:])
    if node.op_type == "Einsum":
        terms = node.attribute[0].s.decode().replace(" ", "").split("->")[0].split(",")
        sizes = {letter: size for term, shape in zip(terms, (a, b)) for letter, size in zip(term, shape)}
        return prod(sizes.values())
    return prod(out) * a[-1]
