"""Compute at export time what does not depend on the input.

Index tables, relative positions spread over a grid and one-hot rows of fixed window grids come out of the trace as
small chains of arithmetic. Evaluated by ONNX Runtime through onnx-graphsurgeon; counts the nodes that vanish.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from structsam_export.rewrite.match import has_16_bit_floats
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

# Larger results are cheaper to compute again than to store (a one-hot of a whole grid, a repeated mask).
SIZE_LIMIT = 4 << 20


def apply(graph: gs.Graph) -> Fired:
    """Fold constants; see the module docstring.

    Nodes with 16-bit floats stay: a constant stored in 16 bits beside a Cast to FP32 would grow to twice its size, and
    ONNX Runtime has no kernels on the CPU to compute BF16 with.
    """
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # its optimiser warns of every node it could not remove
    before = len(graph.nodes)
    graph.fold_constants(size_threshold=SIZE_LIMIT, should_exclude_node=has_16_bit_floats)
    graph.cleanup(remove_unused_graph_inputs=False)
    return Fired(before - len(graph.nodes))
