"""What every registration says of the fused operators: fields, types and shapes (plugins/README.md has the meaning)."""

from __future__ import annotations

from dataclasses import dataclass

NAMESPACE, VERSION = "structsam", "1"
FLOATS = ("float32", "float16", "bfloat16")
FIELDS = {
    "TokenEnergy": ("heads",),
    "MergePlan": ("window_h", "window_w", "merged"),
    "TokenMerge": ("window_h", "window_w", "merged"),
    "TokenUnmerge": ("window_h", "window_w"),
    "RelposAttention": ("heads", "window_h", "window_w", "aligned"),
}
# Types of inputs, then of outputs: "T" and "R" stand for one float type each.
TYPES = {
    "TokenEnergy": (("T",), ("float32",)),
    "MergePlan": (("float32",), ("int32", "int32")),
    "TokenMerge": (("T", "int32"), ("T",)),
    "TokenUnmerge": (("T", "int32", "R"), ("R",)),
    "RelposAttention": (("T", "T", "T", "T", "int32"), ("T",)),
}


@dataclass(frozen=True)
class Fields:
    """Attributes of one node."""

    heads: int = 0
    window_h: int = 0
    window_w: int = 0
    merged: int = 0
    aligned: int = 0


def allowed(op: str, types: list[str], position: int) -> bool:
    """Whether the tensor at a position (inputs, then outputs) may have its type, given those before it."""
    kinds = [*TYPES[op][0], *TYPES[op][1]]
    kind, own = kinds[position], types[position]
    if kind not in ("T", "R"):
        return own == kind
    first = kinds.index(kind)
    return own in FLOATS and own == types[first]


def output_types(op: str, inputs: list[str]) -> list[str]:
    """Types of the outputs by those of the inputs."""
    kinds, made = TYPES[op]
    return [inputs[kinds.index(kind)] if kind in ("T", "R") else kind for kind in made]


def output_shapes(op: str, inputs: list[list[int]], fields: Fields) -> list[list[int]]:
    """Shapes of the outputs by those of the inputs; all are fixed."""
    first, tokens = inputs[0], fields.window_h * fields.window_w
    if op == "TokenEnergy":
        return [first[:3]]
    if op == "MergePlan":
        images, height, width = first
        calls = images * -(-height // fields.window_h) * -(-width // fields.window_w)
        return [[calls, tokens - 3 * fields.merged], [calls, tokens]]
    if op == "TokenMerge":
        return [[*inputs[1], first[3]]]
    return [inputs[2]] if op == "TokenUnmerge" else [first]
