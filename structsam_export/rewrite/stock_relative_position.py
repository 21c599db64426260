"""Relative position bias of SAM's own attention folded into queries and keys.

Blocks that do not merge keep `segment_anything`'s form: scores viewed as (B, qh, qw, kh, kw) plus rel_h[..., None]
plus rel_w[..., None, :]. Both biases are products with constant one-hot rows, so the rule of `relative_position`
holds with the grid's own rows and columns as keys.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.fold_constants import SIZE_LIMIT
from structsam_export.rewrite.match import add, fresh, integers, producer, static_shape, take_over
from structsam_export.rewrite.relative_position import spread
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def apply(graph: gs.Graph) -> Fired:
    """Rewrite Softmax(Reshape(Reshape(q.k') + rel_h + rel_w)) as Softmax([q|rel_h|rel_w].[k|rows|columns]')."""
    fired, skipped = 0, list[str]()
    for node in list(graph.nodes):
        if node.op != "Softmax" or (found := decomposed_bias(node.inputs[0])) is None:
            continue
        scores = node.inputs[0]
        product, rel_h, rel_w = found
        shape = static_shape(scores)
        sides = [static_shape(rel_h), static_shape(rel_w)]
        if shape is None or None in sides or any(static_shape(t) is None for t in product.inputs):
            skipped.append(f"{node.name}: shapes are not all known")
            continue
        if any(prod(side[:-1]) != prod(shape[:-1]) for side in sides if side is not None):
            skipped.append(f"{node.name}: the bias is shared by several score maps")
            continue
        kh, kw = (side[-1] for side in sides if side is not None)
        query, key = product.inputs
        flat = [
            add(graph, "Reshape", [rel, integers(graph, f"{rel.name}.flat", [*shape[:-1], k])], rel, [*shape[:-1], k])
            for rel, k in ((rel_h, kh), (rel_w, kw))
        ]
        depth = (static_shape(query) or [0])[-1] + kh + kw
        lines = lines_of(graph, kh, kw, shape[:-2], key)
        q = add(graph, "Concat", [query, *flat], query, [*shape[:-1], depth], axis=len(shape) - 1)
        k = add(graph, "Concat", [key, lines], key, [*shape[:-2], depth, shape[-1]], axis=len(shape) - 2)
        folded = add(graph, "MatMul", [q, k], scores, shape)
        take_over(folded.inputs[0], scores)
        fired += 1
    return Fired(fired, tuple(skipped))


def decomposed_bias(scores: Any) -> tuple[Any, Any, Any] | None:
    """(MatMul of q and k, rel_h (.., qh, qw, kh), rel_w (.., qh, qw, kw)) behind these scores, or None."""
    flat = producer(scores, "Reshape")
    total = producer(flat.inputs[0], "Add") if flat is not None else None
    inner = producer(total.inputs[0], "Add") if total is not None else None
    if total is None or inner is None:
        return None
    wide = producer(inner.inputs[0], "Reshape")
    product = producer(wide.inputs[0], "MatMul") if wide is not None else None
    by_row, by_column = producer(inner.inputs[1], "Unsqueeze"), producer(total.inputs[1], "Unsqueeze")
    if product is None or by_row is None or by_column is None:
        return None
    if by_row.outputs[0].shape[-1] != 1 or by_column.outputs[0].shape[-2] != 1:
        return None
    return product, by_row.inputs[0], by_column.inputs[0]


def lines_of(graph: gs.Graph, kh: int, kw: int, batch: list[int], like: Any) -> Any:
    """(*batch, kh + kw, kh * kw): one-hot row, then one-hot column, of every key on the grid; repeated in the file
    only where that is small.
    """
    import numpy as np
    import onnx_graphsurgeon as gs

    key = np.arange(kh * kw)
    onehot = np.concatenate([key // kw == np.arange(kh)[:, None], key % kw == np.arange(kw)[:, None]])
    onehot = onehot.astype(like.dtype).reshape(*(1 for _ in batch), *onehot.shape)
    small = onehot.nbytes * prod(batch) <= SIZE_LIMIT
    values = np.ascontiguousarray(np.broadcast_to(onehot, (*batch, *onehot.shape[-2:]))) if small else onehot
    return spread(graph, gs.Constant(fresh(graph, f"{like.name}.lines"), values), batch)
