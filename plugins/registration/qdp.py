"""Quick plugins (QDP) with kernels compiled ahead of time, for TensorRT 10.13 and 11.x.

    import tensorrt.plugin, qdp
    qdp.register(tensorrt.plugin, kernels)      # before a graph is parsed

`kernels` says which compiled kernel computes a node and how it is launched (`Kernel`); `scripts/build_plugins` makes
them. QDP launches one kernel a node, with the node's tensors and int32 numbers as arguments.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))
from operators import FIELDS, NAMESPACE, TYPES, Fields, output_shapes  # noqa: E402

ALL_FLOATS = "FP32|FP16|BF16"


@dataclass(frozen=True)
class Kernel:
    """A compiled kernel and its launch.

    Args:
        name: its symbol.
        code: PTX as text or a cubin as bytes, without Triton's scratch arguments.
        grid: blocks along three axes.
        threads: of a block.
        shared: bytes of shared memory.
        sizes: int32 arguments, which follow the inputs.
    """

    name: str
    code: str | bytes
    grid: tuple[int, int, int]
    threads: int
    shared: int
    sizes: tuple[int, ...] = ()


# (operator, its fields, shapes of its inputs, types of its inputs) -> the kernel that computes it.
Kernels = Callable[[str, Fields, list[list[int]], list[str]], Kernel]
NAMES = {"FLOAT": "float32", "HALF": "float16", "BF16": "bfloat16", "INT32": "int32"}


def register(trtp: Any, kernels: Kernels) -> list[str]:
    """Register descriptions, tactics and kernels of all operators.

    Args:
        trtp: the module `tensorrt.plugin`.
        kernels: finds the compiled kernel of a node.

    Returns:
        Their names, "structsam::TokenMerge" and so on.
    """
    return [registered(trtp, op, kernels) for op in FIELDS]


def registered(trtp: Any, op: str, kernels: Kernels) -> str:
    """Register one operator. QDP reads signatures, so functions are written out, from `operators` alone."""
    name, places = f"{NAMESPACE}::{op}", {"trtp": trtp, "desc": describe, "launch": launch, "tune": tune}
    inputs = [f"i{k}" for k in range(len(TYPES[op][0]))]
    tensors = ", ".join(f"{i}: trtp.TensorDesc" for i in inputs)
    numbers = ", ".join(f"{field}: int" for field in FIELDS[op])
    made = ", ".join(["trtp.TensorDesc"] * len(TYPES[op][1]))
    result = f"Tuple[{made}]" if len(TYPES[op][1]) > 1 else made
    fields = f"Fields({', '.join(f'{field}={field}' for field in FIELDS[op])})"
    given = f"[{', '.join(inputs)}]"
    code = f"""
def description({tensors}, {numbers}) -> {result}:
    return desc(trtp, {op!r}, {given}, {fields})

def ahead({tensors}, {numbers}, outputs: Tuple[{made}], tactic: int) -> Tuple[
    Union[str, bytes], Union[str, bytes], trtp.KernelLaunchParams, trtp.SymExprs
]:
    return launch(trtp, {op!r}, {given}, {fields}, kernels)

def tactics({tensors}, {numbers}, outputs: Tuple[{made}]) -> List[trtp.AutoTuneCombination]:
    return tune(trtp, {op!r})
"""
    import typing  # QDP knows these, not tuple[...] and list[...]

    names: dict[str, Any] = {**places, "Fields": Fields, "kernels": kernels}
    names |= {name: getattr(typing, name) for name in ("List", "Tuple", "Union")}
    exec(compile(code, f"<{name}>", "exec", dont_inherit=True), names)
    trtp.register(name)(names["description"])
    trtp.aot_impl(name)(names["ahead"])
    trtp.autotune(name)(names["tactics"])
    return name


def describe(trtp: Any, op: str, inputs: list[Any], fields: Fields) -> Any:
    """Types and shapes of the outputs."""
    import tensorrt as trt

    (_, made), kinds = TYPES[op], TYPES[op][0]
    shapes = output_shapes(op, [sizes(one) for one in inputs], fields)
    results = []
    for kind, shape in zip(made, shapes):
        like = inputs[kinds.index(kind)] if kind in ("T", "R") else inputs[0]
        one = like.like() if kind in ("T", "R") else trtp.from_shape_expr(tuple(shape), getattr(trt, kind))
        if kind in ("T", "R"):
            one.shape_expr = tuple(shape)
        results.append(one)
    return tuple(results) if len(results) > 1 else results[0]


def launch(trtp: Any, op: str, inputs: list[Any], fields: Fields, kernels: Kernels) -> Any:
    """Name, code, launch and further arguments of the kernel of one node."""
    kinds = [NAMES[str(one.dtype).rpartition(".")[2]] for one in inputs]
    kernel = kernels(op, fields, [sizes(one) for one in inputs], kinds)
    params = trtp.KernelLaunchParams()
    params.grid_x, params.grid_y, params.grid_z = kernel.grid
    params.block_x, params.shared_mem = kernel.threads, kernel.shared
    extra = trtp.SymIntExprs(len(kernel.sizes))
    for place, size in enumerate(kernel.sizes):
        extra[place] = trtp.SymInt32(size)
    return kernel.name, kernel.code, params, extra


def tune(trtp: Any, op: str) -> list[Any]:
    """One combination: linear layouts, each float type; T and R are chosen apart."""
    names = {"int32": "INT32", "float32": "FP32", "T": ALL_FLOATS, "R": ALL_FLOATS}
    one = trtp.AutoTuneCombination()
    for position, kind in enumerate([*TYPES[op][0], *TYPES[op][1]]):
        one.pos([position], names[kind])
    one.tactics([1])
    return [one]


def sizes(tensor: Any) -> list[int]:
    """The shape of a tensor description, which is fixed."""
    return [dim.constant_value() if hasattr(dim, "constant_value") else int(dim) for dim in tensor.shape_expr]
