"""Puts a policy into a graph: types of constants, attributes and tensors, and a Cast wherever two types meet.

A tensor is cast at most once, right after the node that makes it, and all readers share that cast. Graph inputs,
graph outputs and whole subgraphs stay float32.
"""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from typing import TYPE_CHECKING, Any

from structsam_export.precision.numbers import LowType, low_tensor
from structsam_export.precision.typed import INDIFFERENT, formals_of, replace_nodes
from structsam_export.rewrite.subgraphs import captured, names_read, rename_captured

if TYPE_CHECKING:
    from structsam_export.precision.policy import Kept
    from structsam_export.precision.typed import TypedGraph

FLOAT = 1  # onnx.TensorProto.FLOAT
FIXED = ("tensor(float)",)  # an input that ONNX wants in float32 whatever the others are
# A constant of at least so many values is stored in 16 bits even where an FP32 node reads it, with a Cast to FP32 that
# is folded when an engine is built: such a node is kept FP32 for the sake of its sums, and in FP32 SAM's position table
# would take much of the file. Only for nodes kept for these reasons; norms and decisions need exact constants.
LARGE = 1 << 16
ROUNDED_FOR = ("stem", "residual", "movement")


class Retyping:
    """One conversion of a graph, in place; `casts` counts the Cast nodes it put in."""

    def __init__(self, graph: TypedGraph, kept: Mapping[int, Kept], low: LowType) -> None:
        self.graph, self.kept, self.low = graph, kept, low
        self.taken = graph.types.keys() | graph.makers.keys()
        self.made: dict[str, int] = {}  # float tensor -> type it is made in; float32 where it is not named
        self.versions: dict[tuple[str, int], str] = {}  # (tensor, other type) -> name
        self.constants: dict[tuple[str, int], str] = {}  # (constant, type) -> name
        self.after: dict[str, list[Any]] = {}  # tensor -> casts of it
        self.first: list[Any] = []  # casts of constants
        self.casts = 0

    def apply(self) -> None:
        """Retype nodes, constants and recorded types."""
        import onnx

        graph = self.graph.model.graph
        nodes = [onnx.NodeProto.FromString(n.SerializeToString()) for n in graph.node]
        for i, node in enumerate(nodes):
            wanted = self.wanted(i, node, outputs=True)
            self.made.update((name, elem) for name, elem in zip(node.output, wanted) if elem)
            self.retype_attributes(node)
        for node in nodes:
            self.split_outputs(node)
        for i, node in enumerate(nodes):
            self.connect(i, node)
        result = self.first + [cast for value in graph.input for cast in self.after.get(value.name, ())]
        for node in nodes:
            result += [node, *(cast for name in node.output for cast in self.after.get(name, ()))]
        replace_nodes(graph, result)
        self.retype_constants()
        self.retype_records()

    def wanted(self, number: int, node: Any, *, outputs: bool = False) -> list[int]:
        """Type of each input (or output) of a node; 0 where it is not a float or may be any."""
        names = node.output if outputs else node.input
        if not outputs and node.op_type in INDIFFERENT:
            return [0] * len(names)
        allowed = formals_of(node, self.graph.opset)[outputs]
        kept = number in self.kept
        return [
            (FLOAT if kept or types == FIXED else self.low.elem) if self.graph.is_float(name) else 0
            for name, types in zip(names, allowed)
        ]

    def split_outputs(self, node: Any) -> None:
        """Where a node makes a graph output in low precision, let it make another tensor and a Cast the output."""
        for slot, name in enumerate(node.output):
            if name in self.graph.outputs and self.made.get(name) == self.low.elem:
                inner = self.versions[name, self.low.elem] = self.fresh(name, self.low.elem)
                node.output[slot] = inner
                self.made[inner], self.made[name] = self.low.elem, FLOAT
                self.after[inner] = [self.cast(inner, name, FLOAT)]

    def connect(self, number: int, node: Any) -> None:
        """Point every float input of a node at its tensor in the type the node wants; its subgraphs want FP32."""
        for slot, elem in enumerate(self.wanted(number, node)):
            name = node.input[slot]
            if elem:
                node.input[slot] = self.as_type(name, elem, self.kept.get(number))
        inner = [name for name in captured(node) if self.graph.is_float(name)]
        rename_captured(node, {name: self.as_type(name, FLOAT, self.kept.get(number)) for name in inner})

    def as_type(self, name: str, elem: int, kept: Kept | None) -> str:
        """Name of a float tensor in a type, for a reader that is kept FP32 or not."""
        if name in self.graph.constants:
            return self.constant(name, elem, kept)
        return name if self.made.get(name, FLOAT) == elem else self.version(name, elem)

    def version(self, name: str, elem: int) -> str:
        """A computed tensor in the type it is not made in."""
        if (name, elem) not in self.versions:
            self.versions[name, elem] = self.fresh(name, elem)
            self.after.setdefault(name, []).append(self.cast(name, self.versions[name, elem], elem))
        return self.versions[name, elem]

    def constant(self, name: str, elem: int, kept: Kept | None) -> str:
        """A constant in a type; the first type that is asked for keeps the name."""
        tensor = self.graph.constants[name]
        if kept is not None and kept.reason in ROUNDED_FOR and prod(tensor.dims) >= LARGE:
            stored = self.constant(name, self.low.elem, None)
            if (name, elem) not in self.versions:
                self.versions[name, elem] = self.fresh(name, elem)
                self.first.append(self.cast(stored, self.versions[name, elem], elem))
            return self.versions[name, elem]
        if (name, elem) not in self.constants:
            new = (name, self.low.elem if elem == FLOAT else FLOAT) not in self.constants
            self.constants[name, elem] = name if new else self.fresh(name, elem)
        return self.constants[name, elem]

    def cast(self, source: str, target: str, elem: int) -> Any:
        import onnx

        self.casts += 1
        self.made[target] = elem
        return onnx.helper.make_node("Cast", [source], [target], name=f"cast_{target}", to=elem)

    def fresh(self, name: str, elem: int) -> str:
        """`name.fp16`, `name.bf16` or `name.fp32`, with a number if there is such a tensor."""
        base = f"{name}.{'fp32' if elem == FLOAT else self.low.kind}"
        candidate, number = base, 0
        while candidate in self.taken:
            number += 1
            candidate = f"{base}.{number}"
        self.taken.add(candidate)
        return candidate

    def retype_attributes(self, node: Any) -> None:
        """Types that stand in attributes: what a Cast casts to, and what ConstantOfShape fills with."""
        from onnx import numpy_helper

        if node.output[0] not in self.made or self.made[node.output[0]] == FLOAT:
            return
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to":
                attribute.i = self.low.elem
            elif node.op_type == "ConstantOfShape" and attribute.name == "value":
                attribute.t.CopyFrom(low_tensor("", numpy_helper.to_array(attribute.t), self.low))

    def retype_constants(self) -> None:
        """Write every constant once for each type it is used in; others are dropped."""
        from onnx import numpy_helper

        graph = self.graph.model.graph
        used = names_read(graph) | set(self.graph.outputs)
        made = []
        for name in self.graph.constants:
            types = [
                (elem, self.constants[name, elem]) for elem in (FLOAT, self.low.elem) if (name, elem) in self.constants
            ]
            if not types and name in used:
                made.append(numpy_helper.from_array(self.graph.array(name), name))
            for elem, target in types:
                values = self.graph.array(name)
                low = elem == self.low.elem
                made.append(low_tensor(target, values, self.low) if low else numpy_helper.from_array(values, target))
        del graph.initializer[:]
        graph.initializer.extend(made)

    def retype_records(self) -> None:
        """Bring the recorded types of inner tensors up to date, and record the casts' results."""
        import onnx

        records = {value.name: value for value in self.graph.model.graph.value_info}
        for name, record in records.items():
            if name in self.made:
                record.type.tensor_type.elem_type = self.made[name]
        outputs = {value.name: value for value in self.graph.model.graph.output}
        for (name, elem), target in self.versions.items():
            like = records.get(name) or outputs.get(name)
            if like is not None:
                copy = onnx.ValueInfoProto.FromString(like.SerializeToString())
                copy.name, copy.type.tensor_type.elem_type = target, elem
                self.graph.model.graph.value_info.append(copy)
