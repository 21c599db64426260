"""Stage 3: ONNX -> faster ONNX, by small rules in one fixed order.

A rule is a module with `apply(graph) -> Fired`: it changes an onnx-graphsurgeon graph in place, and says how often it
fired and which near matches it left alone. A graph computes the same after a rule as before it, and a rule that runs
twice in a row fires nothing the second time. A new rule is one file and one line: in RULES, or in FORMS if only some
runtimes can use what it makes.

Portable rules run on FP32 graphs. The rules of a form run on FP32 graphs and on those that `precision.convert` has
typed as FP16 or BF16: they come after typing, as the types of the operators they put in are not ONNX's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

from structsam_export.reading import content_errors
from structsam_export.rewrite.results import Fired, Rewritten
from structsam_export.supervise import parsing

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

__all__ = [
    *("FORMS", "INLINE_LIMIT", "PLUGIN_RULES", "RULES", "Fired", "Rewritten"),
    *("apply_form", "apply_plugins", "apply_rules", "rewrite"),
]

RULES = {
    "fold_constants": "structsam_export.rewrite.fold_constants",
    "gather_nd": "structsam_export.rewrite.gather_nd",
    "row_gather": "structsam_export.rewrite.row_gather",
    "gather_grid": "structsam_export.rewrite.gather_grid",
    "gather_last": "structsam_export.rewrite.gather_last",
    "movement_gather": "structsam_export.rewrite.movement_gather",
    "relative_position": "structsam_export.rewrite.relative_position",
    "stock_relative_position": "structsam_export.rewrite.stock_relative_position",
    "layer_norm_2d": "structsam_export.rewrite.layer_norm_2d",
    "gelu": "structsam_export.rewrite.gelu",
    "split": "structsam_export.rewrite.split",
    "linear": "structsam_export.rewrite.linear",
    "reshape_chain": "structsam_export.rewrite.reshape_chain",
}

# What a graph is written for: every runtime; runtimes that know ONNX's Attention; ONNX Runtime on a CPU; OpenVINO.
FORMS: dict[str, dict[str, str]] = {
    "portable": {},
    "attention": {"attention_operator": "structsam_export.rewrite.attention_operator"},
    "ort-cpu": {
        "attention_ort": "structsam_export.rewrite.attention_ort",
        "mlp_blocks": "structsam_export.rewrite.mlp_blocks",
    },
    "openvino": {"token_rows": "structsam_export.rewrite.token_rows"},
}
# Put in last, once for each plugin that was asked for (`fused.PLUGINS`).
PLUGIN_RULES = {"use_plugin": "structsam_export.rewrite.use_plugin"}
# Run again at the end: rules that replace indices by constants leave arithmetic on constants behind, and the rules of a
# form leave Reshapes of Reshapes.
AGAIN, AGAIN_AFTER_FORM = ("fold_constants",), ("fold_constants", "reshape_chain")

# Protobuf stops at 2 GiB; from here on weights go to a file of their own.
INLINE_LIMIT = 1_500_000_000


def apply_rules(graph: gs.Graph, *, form: str = "portable") -> Rewritten:
    """Run every portable rule once, in order, then those of the form, on an FP32 graph, in place."""
    return run_in_order(graph, (*RULES, *FORMS[form], *(AGAIN_AFTER_FORM if FORMS[form] else AGAIN)))


def run_in_order(graph: gs.Graph, rules: Iterable[str]) -> Rewritten:
    """Run rules by name; one that is named twice runs twice, and its counts are added."""
    from structsam_export.rewrite.match import errors_only

    modules = RULES | {rule: module for form in FORMS.values() for rule, module in form.items()}
    before, counts, skipped = len(graph.nodes), dict[str, int](), list[str]()
    for rule in rules:
        with errors_only():
            fired: Fired = import_module(modules[rule]).apply(graph)
        counts[rule] = counts.get(rule, 0) + fired.count
        skipped += [f"{rule}: {reason}" for reason in fired.skipped]
        graph.cleanup(remove_unused_graph_inputs=False).toposort()
    return Rewritten(counts, tuple(skipped), before, len(graph.nodes))


def rewrite(source: Path, target: Path, *, keep_outputs: tuple[str, ...], form: str = "portable") -> Rewritten:
    """Rewrite an FP32 ONNX file by the portable rules and then by those of a form.

    Args:
        source: file of `trace`.
        target: file to write; weights beyond protobuf's limit stay outside, in `<target>.data`.
        keep_outputs: graph outputs of the result. Merging uses the other ones (the plans), so their tensors stay.
        form: what to write the graph for, of FORMS. Only for graphs that stay FP32; others take it by `apply_form`.

    Raises:
        ArtifactError: the file is no ONNX.
    """

    def change(graph: gs.Graph) -> Rewritten:
        made = apply_rules(graph, form=form)
        graph.outputs = [t for t in graph.outputs if t.name in keep_outputs]
        graph.cleanup(remove_unused_graph_inputs=False).toposort()
        return made

    return rewritten_file(source, target, change)


def apply_form(source: Path, target: Path, form: str) -> Rewritten:
    """Rewrite an ONNX file by the rules of a form alone.

    Args:
        source: file of `rewrite`, or what `precision.convert` made of it.
        target: file to write, as in `rewrite`; may be `source`. Form "portable" has no rules and copies the file.
        form: what to write the graph for, of FORMS.
    """
    from structsam_export.rewrite.weights import copy_file

    if FORMS[form]:
        return rewritten_file(source, target, lambda graph: run_in_order(graph, (*FORMS[form], *AGAIN_AFTER_FORM)))
    with content_errors(source):
        nodes = copy_file(source, target)
    return Rewritten({}, (), nodes, nodes)


def apply_plugins(source: Path, target: Path, names: Sequence[str]) -> Rewritten:
    """Put fused operators into an ONNX file of `rewrite`, `precision.convert` or `apply_form`.

    Args:
        source: file to read.
        target: file to write, as in `rewrite`; may be `source`. Each operator's function is in it, so that runtimes
            without the plugin compute the same.
        names: plugins, of `fused.PLUGINS`. None of them: the file is copied.

    Returns:
        Counts by plugin, as "use_plugin.<name>".
    """
    from structsam_export.rewrite.match import errors_only
    from structsam_export.rewrite.weights import TABLES, copy_file

    def change(graph: gs.Graph) -> Rewritten:
        before, counts, skipped = len(graph.nodes), dict[str, int](), list[str]()
        for rule, module in PLUGIN_RULES.items():
            for name in names:
                with errors_only():
                    fired: Fired = import_module(module).apply(graph, name)
                counts[f"{rule}.{name}"] = fired.count
                skipped += [f"{rule}.{name}: {reason}" for reason in fired.skipped]
                graph.cleanup(remove_unused_graph_inputs=False).toposort()
        return Rewritten(counts, tuple(skipped), before, len(graph.nodes))

    if names:
        return rewritten_file(source, target, change, large=TABLES)
    with content_errors(source):
        nodes = copy_file(source, target)
    return Rewritten({}, (), nodes, nodes)


def rewritten_file(
    source: Path, target: Path, change: Callable[[gs.Graph], Rewritten], *, large: int | None = None
) -> Rewritten:
    """Let `change` have the graph of a file, without its large weights, and write the result.

    Functions of our own operators are put in anew: those that the result uses.

    Args:
        source, target: as in `rewrite`.
        change: changes the graph in place.
        large: bytes from which on weights stay in their file; None: `weights.LARGE`.

    Raises:
        ArtifactError: no ONNX, or a graph that cannot be rewritten.
    """
    import onnx_graphsurgeon as gs

    from structsam_export.fused import DOMAIN, add_functions
    from structsam_export.graphs import load
    from structsam_export.rewrite.match import errors_only
    from structsam_export.rewrite.weights import LARGE, attach, detach, save

    model = load(source)
    before = len(model.graph.node)
    with content_errors(source), parsing("rewriting", source):
        others = [f for f in model.functions if f.domain != DOMAIN]
        del model.functions[:]
        model.functions.extend(others)
        weights = detach(model, source.parent, large or LARGE)
        with errors_only():
            graph = gs.import_onnx(model)
        made = change(graph)
        model = gs.export_onnx(graph)
        attach(model, weights)
        add_functions(model)
        save(model, source, target, INLINE_LIMIT)
    return replace(made, nodes_before=before, nodes=len(model.graph.node))
