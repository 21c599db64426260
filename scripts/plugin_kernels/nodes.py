"""The launch of each kind of fused node of an encoder."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def launches(encoder: Path) -> dict[str, Any]:
    """The key of every kind of node -> its launch."""
    import onnx
    from onnx.helper import tensor_dtype_to_np_dtype

    model = onnx.load(str(encoder), load_external_data=False)
    known = {t.name: (t.data_type, list(t.dims)) for t in model.graph.initializer}
    for value in (*model.graph.value_info, *model.graph.input, *model.graph.output):
        kind = value.type.tensor_type
        known[value.name] = (kind.elem_type, [d.dim_value for d in kind.shape.dim])
    found = {}
    for node in model.graph.node:
        if node.domain == "structsam":
            kinds = [tensor_dtype_to_np_dtype(known[name][0]).name for name in node.input]
            shapes = [known[name][1] for name in node.input]
            fields = {a.name: a.i for a in node.attribute if not a.name.startswith("plugin_")}
            found[key_of(node.op_type, fields, kinds, shapes)] = launch_of(node.op_type, fields, kinds, shapes)
    return found


def key_of(op: str, fields: dict[str, int], kinds: list[str], shapes: list[list[int]]) -> str:
    """A node as `key` in plugins.cpp writes it."""
    from operators import FIELDS

    given = ",".join(f"{name}={fields.get(name, 0)}" for name in FIELDS[op])
    return f"{op}:{given}:{','.join(kinds)}:{','.join('x'.join(map(str, shape)) for shape in shapes)}"


def launch_of(op: str, fields: dict[str, int], kinds: list[str], shapes: list[list[int]]) -> Any:
    """The launch of a node's kernel."""
    from kernel_launch import part

    first, kind = shapes[0], kinds[0]
    window = fields.get("window_h", 0), fields.get("window_w", 0)
    if op == "TokenEnergy":
        heads = fields["heads"]
        return part("token_energy", "kernel").launch(first[0], first[1:3], heads, first[3] // heads, kind)
    if op == "MergePlan":
        return part("merge_plan", "kernel").launch(first[0], first[1:], window, fields["merged"])
    if op == "TokenMerge":
        return part("token_merge", "kernel").launch(first[0], first[1:3], window, fields["merged"], first[3], kind)
    if op == "TokenUnmerge":
        grid, merged = shapes[2], (shapes[1][1] - first[1]) // 3
        return part("token_unmerge", "kernel").launch(grid[0], grid[1:3], window, merged, grid[3], kind, kinds[2])
    (calls, n, width), heads = first, fields["heads"]
    mode = "aligned" if fields.get("aligned") else "one_hot"
    return part("relpos_attention", "kernel").launch(calls, n, heads, width // heads, window, kind, mode)
