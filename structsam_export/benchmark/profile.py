"""Where the time of an ONNX encoder goes: by operator, and by what it is done for.

Parts: "decide" (energies, similarities, sorting: all that ends in integers), "move" (rows gathered by a decision, means
of merged tokens, one-hot positions), "linear" (products with weights), "attention" (products of activations, softmax),
and "other" (norms, residuals, GELU, layout). What merging adds is decide + move.
"""

from __future__ import annotations

from bisect import bisect_left
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

PARTS = ("linear", "attention", "decide", "move", "other")
SUFFIX = "_kernel_time"
PRODUCTS = ("MatMul", "Gemm", "Einsum", "Conv", "ConvTranspose")
ATTENTION = ("Softmax", "Attention", "MultiHeadAttention")
# What a decision's rows pass through before the product they are made for.
CARRIES = ("Reshape", "ReduceMean", "Concat", "Slice", "Split", "Unsqueeze", "Squeeze", "Expand", "Transpose", "Cast")


def summary(onnx: Path, events: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Milliseconds of one inference by part and by operator, from the events of ONNX Runtime's profiler.

    Each node counts with its fastest run. Nodes ONNX Runtime made itself by fusing are told by their names, which
    begin with that of a node of the file; those that do not are "other".
    """
    parts, runs, ops = parts_of(onnx), defaultdict(list), {}
    for event in outermost([e for e in events if e["name"].endswith(SUFFIX)]):
        key = (event["name"].removesuffix(SUFFIX), event["args"].get("node_index"))
        runs[key].append(event["dur"] / 1e3)
        ops[key] = event["args"]["op_name"]
    by_part = dict.fromkeys(PARTS, 0.0)
    by_op: dict[str, float] = defaultdict(float)
    for key, times in runs.items():
        by_part[part_of(key[0], ops[key], parts)] += min(times)
        by_op[ops[key]] += min(times)
    total = sum(by_part.values()) or 1.0
    return {
        "total_ms": round(total, 3),
        "parts_ms": {part: round(ms, 3) for part, ms in by_part.items()},
        "merging_share": round((by_part["decide"] + by_part["move"]) / total, 4),
        "ops_ms": {op: round(ms, 3) for op, ms in sorted(by_op.items(), key=lambda item: -item[1])},
    }


def outermost(events: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Events without those of the nodes in a loop's body, whose time the loop's own event holds."""
    loops = [(e["ts"], e["ts"] + e["dur"]) for e in events if e["args"]["op_name"] == "Scan"]
    starts = [start for start, _ in loops]

    def inside(event: dict[str, Any]) -> bool:
        last = bisect_left(starts, event["ts"]) - 1  # of the loops that began before
        return last >= 0 and event["ts"] < loops[last][1]

    return [e for e in events if e["args"]["op_name"] == "Scan" or not inside(e)]


def part_of(name: str, op: str, parts: dict[str, str]) -> str:
    """The part of a node as ONNX Runtime ran it."""
    while name:  # a fused node is called NAME/MatMulAddFusion, and other exporters' names have slashes of their own
        if name in parts:
            return parts[name]
        name = name.rpartition("/")[0]
    return {"Gemm": "linear", "Conv": "linear", "FusedMatMul": "attention"}.get(op, "other")


def parts_of(path: Path) -> dict[str, str]:
    """What every node of an encoder is for, by its name."""
    from structsam_export.graphs import load

    graph = load(path).graph
    weights = {t.name for t in graph.initializer}
    integers = {v.name for v in graph.value_info if v.type.tensor_type.elem_type in (6, 7, 9)}
    deciding = decision_cone(graph, integers, weights)
    moving = moved(graph, integers - weights, deciding)
    parts = {}
    for node in graph.node:
        if node.output[0] in deciding:
            part = "decide"
        elif node.output[0] in moving:
            part = "move"
        elif node.op_type in PRODUCTS:
            part = "linear" if any(name in weights for name in node.input[1:2]) else "attention"
        elif node.op_type in ATTENTION:
            part = "attention"
        elif node.op_type == "Scan" or (node.op_type == "Add" and any(i in weights for i in node.input)):
            part = "linear"  # a Scan is an MLP in portions, see `rewrite.mlp_blocks`
        else:
            part = "other"
        parts[node.name] = part
    return parts


def decision_cone(graph: Any, integers: set[str], weights: set[str]) -> set[str]:
    """Nodes all of whose results end in integers: they serve decisions alone. By their first output: names may lack."""
    readers: dict[str, list[Any]] = defaultdict(list)
    for node in graph.node:
        for name in node.input:
            readers[name].append(node)
    outputs = {o.name for o in graph.output}
    cone: set[str] = set()
    for node in reversed(graph.node):
        results = [out for out in node.output if out and (readers[out] or out in outputs)]
        if results and all(
            out in integers or (out not in outputs and all(r.output[0] in cone for r in readers[out]))
            for out in results
        ):
            cone.add(node.output[0])
    return cone


def moved(graph: Any, integers: set[str], deciding: set[str]) -> set[str]:
    """Nodes, by first output, that carry out decisions: gathers by computed integers, what their rows pass through."""
    carried: set[str] = set()
    found: set[str] = set()
    for node in graph.node:
        if node.output[0] in deciding:
            continue
        by_decision = node.op_type in ("Gather", "GatherElements") and node.input[1] in integers
        if by_decision or (node.op_type in CARRIES and carried & set(node.input)):
            found.add(node.output[0])
            carried |= set(node.output)
    return found
