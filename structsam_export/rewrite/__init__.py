"""Stage 3: ONNX -> faster ONNX, by small rules in one fixed order.

A rule is a module with `apply(graph, skipped) -> int`: it changes the onnx-graphsurgeon graph in place, returns how
often it fired, and appends a reason to `skipped` for every near match it left alone. Running a rule twice fires
nothing the second time, and every rule leaves the graph's results as they were.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

RULES = {
    "fold_constants": "structsam_export.rewrite.fold_constants",
    "gather_nd": "structsam_export.rewrite.gather_nd",
    "row_gather": "structsam_export.rewrite.row_gather",
    "gather_grid": "structsam_export.rewrite.gather_grid",
    "gather_last": "structsam_export.rewrite.gather_last",
    "layout_gather": "structsam_export.rewrite.layout_gather",
    "relative_position": "structsam_export.rewrite.relative_position",
    "stock_relative_position": "structsam_export.rewrite.stock_relative_position",
    "layer_norm_2d": "structsam_export.rewrite.layer_norm_2d",
    "gelu": "structsam_export.rewrite.gelu",
    "split": "structsam_export.rewrite.split",
    "linear": "structsam_export.rewrite.linear",
    "reshape_chain": "structsam_export.rewrite.reshape_chain",
}

# What a graph is written for beyond that: every runtime; runtimes that know ONNX's Attention; ONNX Runtime on a CPU;
# OpenVINO, whose graphs run everywhere too.
FORMS: dict[str, dict[str, str]] = {
    "portable": {},
    "attention": {"attention_operator": "structsam_export.rewrite.attention_operator"},
    "ort-cpu": {
        "attention_ort": "structsam_export.rewrite.attention_ort",
        "mlp_blocks": "structsam_export.rewrite.mlp_blocks",
    },
    "openvino": {"token_rows": "structsam_export.rewrite.token_rows"},
}

# Protobuf stops at 2 GiB; from here on weights go to a file of their own.
INLINE_LIMIT = 1_500_000_000


def apply_rules(graph: gs.Graph, skipped: list[str] | None = None, form: str = "portable") -> dict[str, int]:
    """Run every rule once, in order, then those of the form, and fold constants again; returns rule -> times fired."""
    counts: dict[str, int] = {}
    reasons: list[str] = [] if skipped is None else skipped
    for name, module in (RULES | FORMS[form]).items():
        counts[name] = import_module(module).apply(graph, reasons)
        graph.cleanup(remove_unused_graph_inputs=False).toposort()
    # Rules that meet fixed indices leave arithmetic on constants behind, those of a form views of views.
    for name in ("fold_constants", *(("reshape_chain",) if FORMS[form] else ())):
        counts[name] += import_module(RULES[name]).apply(graph, reasons)
        graph.cleanup(remove_unused_graph_inputs=False).toposort()
    return counts


def rewrite(
    source: Path,
    target: Path,
    *,
    keep_outputs: tuple[str, ...],
    skipped: list[str] | None = None,
    form: str = "portable",
) -> dict[str, int]:
    """Rewrite the ONNX file `source` into `target`.

    Args:
        source: file of `trace`.
        target: file to write; weights beyond protobuf's limit stay outside, in `<target>.data`.
        keep_outputs: graph outputs of the result; others (the plans) stay inside as named tensors.
        skipped: receives the reasons for near matches that were left alone.
        form: what to write the graph for, of FORMS.

    Returns:
        {rule: times fired}.
    """
    import onnx
    import onnx_graphsurgeon as gs

    from structsam_export.rewrite.weights import attach, detach, save

    model = onnx.load(str(source), load_external_data=False)
    weights = detach(model, source.parent)
    graph = gs.import_onnx(model)
    counts = apply_rules(graph, skipped, form)
    # Plans stay in the graph, because merging uses them; they only stop being outputs.
    graph.outputs = [t for t in graph.outputs if t.name in keep_outputs]
    graph.cleanup(remove_unused_graph_inputs=False).toposort()
    model = gs.export_onnx(graph)
    attach(model, weights)
    save(model, source, target, INLINE_LIMIT)
    return counts
