"""Compute at export time what does not depend on the input.

Index tables, relative positions spread over a grid and one-hot rows of fixed layouts come out of the trace as
small chains of arithmetic. Evaluated by ONNX Runtime through onnx-graphsurgeon; counts the nodes that vanish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

# Larger results are cheaper to compute again than to store (a one-hot of a whole grid, a repeated mask).
SIZE_LIMIT = 4 << 20


def apply(graph: gs.Graph, skipped: list[str]) -> int:
    """Fold constants; see the module docstring."""
    import onnxruntime
    from onnx_graphsurgeon.logger import G_LOGGER

    onnxruntime.set_default_logger_severity(3)  # its optimiser warns of every node it could not remove
    before = len(graph.nodes)
    severity = G_LOGGER.severity
    G_LOGGER.severity = G_LOGGER.ERROR
    try:
        graph.fold_constants(size_threshold=SIZE_LIMIT).cleanup(remove_unused_graph_inputs=False)
    finally:
        G_LOGGER.severity = severity
    return before - len(graph.nodes)
