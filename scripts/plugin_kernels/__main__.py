"""The kernels of one encoder's plugins for one SM, as the C++ library reads them. No GPU is needed.

    python scripts/plugin_kernels ENCODER.onnx --sm 87 --cuda 12.6 --output kernels   # then STRUCTSAM_KERNELS=kernels

ENCODER is of an export with --plugins. The folder gets a cubin for each kind of node and kernels.txt, which says which
one computes a node and how it is launched (plugins/registration/v3/kernels.h).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
sys.path[0] = str(ROOT / "scripts")
sys.path += [str(ROOT / "plugins"), str(ROOT / "plugins" / "registration")]


def main() -> None:
    from build_plugins.compiling import compiled
    from build_plugins.targets import SMS, ptx_version

    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("encoder", type=Path)
    parser.add_argument("--sm", type=int, choices=list(SMS), required=True)
    parser.add_argument("--cuda", help="CUDA of the device's driver; default: the first that knows the SM")
    parser.add_argument("--output", type=Path, default=Path("kernels"))
    given = parser.parse_args()
    version = ptx_version(given.sm, given.cuda)
    if isinstance(version, str):
        parser.error(version)
    given.output.mkdir(parents=True, exist_ok=True)
    lines = []
    for number, (key, launch) in enumerate(launches(given.encoder).items()):
        made = compiled(launch, given.sm, version)
        if made.spills:
            raise SystemExit(f"{key}: spills {made.spills} bytes on SM {given.sm}")
        name = f"{number}.sm{given.sm}.cubin"
        (given.output / name).write_bytes(made.cubin)
        words = [key, made.entry, name, *launch.grid, 32 * launch.warps, made.shared, *launch.sizes.values()]
        lines.append(" ".join(map(str, words)))
        print(lines[-1])
    (given.output / "kernels.txt").write_text("\n".join(lines) + "\n")


def launches(encoder: Path) -> dict[str, Any]:
    """The key of every kind of node -> its launch."""
    import onnx
    from onnx.helper import tensor_dtype_to_np_dtype

    model = onnx.load(str(encoder), load_external_data=False)
    infos = {v.name: v.type.tensor_type for v in (*model.graph.value_info, *model.graph.input, *model.graph.output)}
    found = {}
    for node in model.graph.node:
        if node.domain == "structsam":
            kinds = [tensor_dtype_to_np_dtype(infos[name].elem_type).name for name in node.input]
            shapes = [[d.dim_value for d in infos[name].shape.dim] for name in node.input]
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


if __name__ == "__main__":
    main()
