"""Reshape after Reshape -> one Reshape, and none where it changes nothing.

The rules above leave such chains behind (a flattening after a view). Each is free on a GPU but costs a node, and on
some runtimes a copy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from structsam_export.rewrite.match import integers, producer, static_shape
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def apply(graph: gs.Graph) -> Fired:
    """Skip inner reshapes and drop reshapes to the shape a tensor already has."""
    fired = 0
    outputs = {t.name for t in graph.outputs}
    for node in list(graph.nodes):
        if node.op != "Reshape":
            continue
        out = node.outputs[0]
        shape = static_shape(out)
        if shape is None:
            continue
        inner = producer(node.inputs[0], "Reshape")
        if inner is not None and inner.outputs[0].name not in outputs:
            node.inputs = [inner.inputs[0], integers(graph, f"{node.name}.shape", shape)]
            fired += 1
        if static_shape(node.inputs[0]) == shape and out.name not in outputs:
            for reader in list(out.outputs):
                reader.inputs = [node.inputs[0] if t is out else t for t in reader.inputs]
            node.outputs.clear()
            fired += 1
    return Fired(fired)
