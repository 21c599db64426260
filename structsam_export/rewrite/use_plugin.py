"""Parts of a graph -> fused operators, found and put in by the patterns of the plugins (`plugins/<name>/pattern.py`).

Runs last, on FP32 and on typed graphs: an operator has the types of the tensors around it. Each plugin counts by
itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from structsam_export.fused import PLUGINS, part
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs


def apply(graph: gs.Graph, name: str) -> Fired:
    """Put in one plugin wherever its pattern matches."""
    pattern = part(name, "pattern")
    matches = pattern.get_matching_subgraphs(graph)
    tensors = graph.tensors()
    skipped = []
    for match in matches:
        inputs, outputs = ([tensors[t] for t in match[side]] for side in ("inputs", "outputs"))
        if not pattern.replace_with_plugin(graph, inputs, outputs, dict(match["attributes"]), PLUGINS[name]):
            skipped.append(f"{outputs[0].name}: could not be replaced")
    return Fired(len(matches) - len(skipped), tuple(skipped))
