"""GatherND over one axis -> Gather.

`table[index]` traces to Unsqueeze + GatherND. Gather says the same without the extra axis, and runtimes have their
fastest row copy for it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from structsam_export.rewrite.match import producer
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def apply(graph: gs.Graph) -> Fired:
    """Rewrite GatherND(data, Unsqueeze(index, -1)) as Gather(data, index, axis=0)."""
    fired, skipped = 0, list[str]()
    for node in graph.nodes:
        if node.op != "GatherND" or node.attrs.get("batch_dims", 0) != 0:
            continue
        data, index = node.inputs
        unsqueeze = producer(index, "Unsqueeze")
        if unsqueeze is None or index.shape is None or index.shape[-1] != 1:
            skipped.append(f"{node.name}: more than one indexed axis")
            continue
        source = unsqueeze.inputs[0]
        if list(source.shape) != list(index.shape[:-1]):
            skipped.append(f"{node.name}: the index is not unsqueezed at its end")
            continue
        node.op, node.attrs, node.inputs = "Gather", {"axis": 0}, [data, source]
        fired += 1
    return Fired(fired, tuple(skipped))
