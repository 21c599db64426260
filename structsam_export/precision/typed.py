"""A view of an ONNX graph that knows which of its tensors are floats and who reads them.

Large weights are set aside while the graph is looked at, as in `rewrite.weights`, so that ViT-H's 2.5 GB are read
one matrix at a time.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

from structsam_export.errors import PrecisionError
from structsam_export.precision.inference import tensor_types
from structsam_export.rewrite.operators import ONNX, declared
from structsam_export.rewrite.subgraphs import all_nodes, captured

# Read any type and make integers: no reason to cast.
INDIFFERENT = ("Shape", "Size")


@dataclass
class TypedGraph:
    """An `onnx.ModelProto` without its large weights, and indices over it.

    `makers`: tensor -> number of its node; `readers`: tensor -> numbers of the nodes that read it, themselves or in a
    subgraph; `types`: tensor -> ONNX element type, tensors in subgraphs included; `constants`: name ->
    `onnx.TensorProto` of every initialiser, values perhaps still in a file.
    """

    model: Any
    base: Path
    constants: dict[str, Any]
    types: dict[str, int] = field(default_factory=dict)
    makers: dict[str, int] = field(default_factory=dict)
    readers: dict[str, list[int]] = field(default_factory=dict)

    @property
    def nodes(self) -> list[Any]:
        return list(self.model.graph.node)

    @property
    def outputs(self) -> list[str]:
        return [o.name for o in self.model.graph.output]

    @property
    def opset(self) -> int:
        return max(int(o.version) for o in self.model.opset_import if o.domain in ("", "ai.onnx"))

    def is_float(self, name: str) -> bool:
        """Whether a tensor is float32."""
        return self.types.get(name) == 1

    def float_inputs(self, node: Any) -> list[str]:
        """Float tensors that a node computes with, itself or in a subgraph; reading a shape is not computing."""
        return [] if node.op_type in INDIFFERENT else [name for name in inputs_of(node) if self.is_float(name)]

    def float_outputs(self, node: Any) -> list[str]:
        return [name for name in node.output if self.is_float(name)]

    def maker(self, name: str, op: str = "") -> Any | None:
        """The node that makes a tensor, if it is of type `op`."""
        number = self.makers.get(name)
        node = None if number is None else self.model.graph.node[number]
        return node if node is not None and op in ("", node.op_type) else None

    def computed(self, name: str) -> bool:
        """Whether a tensor is no constant."""
        return name not in self.constants

    def array(self, name: str) -> Any:
        """Values of a constant, read from its file where they are there."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name], str(self.base))


def read(path: Path) -> TypedGraph:
    """Read an ONNX file and find the type of every tensor.

    Raises:
        PrecisionError: an operator outside ONNX that `rewrite.operators` does not declare, local functions, a tensor
            of another float type or of an unknown type.
    """
    import onnx

    from structsam_export.graphs import load

    model = load(path)
    constants_as_initialisers(model.graph)
    refuse(model, path)
    constants = {t.name: t for t in model.graph.initializer}
    graph = TypedGraph(model, path.parent, constants)
    graph.types |= tensor_types(model)
    for i, node in enumerate(model.graph.node):
        for name in filter(None, node.output):
            graph.makers[name] = i
        for name in dict.fromkeys(inputs_of(node)):
            graph.readers.setdefault(name, []).append(i)
    other = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE
    made = [name for node in all_nodes(model.graph) for name in node.output if name]
    for name in (*made, *constants):
        kind = graph.types.get(name, 0)
        if kind == 0:
            raise PrecisionError(
                f"{path}: the type of tensor '{name}' is not known. Export and rewrite the model again."
            )
        if kind in other:
            kind_name = onnx.TensorProto.DataType.Name(kind)
            raise PrecisionError(
                f"{path}: tensor '{name}' is {kind_name} already. Pass the float32 graph of an export."
            )
    return graph


def inputs_of(node: Any) -> list[str]:
    """Names of the tensors that a node reads, itself or in a subgraph."""
    return [name for name in (*node.input, *captured(node)) if name]


def refuse(model: Any, path: Path) -> None:
    """Raise for operators whose types nobody has declared."""
    for node in all_nodes(model.graph):
        if node.domain not in ONNX and declared(node) is None:
            raise PrecisionError(
                f"{path}: node '{node.name}' is {node.op_type}, an operator of '{node.domain}' whose types are not "
                "declared. Declare it in structsam_export/rewrite/operators.py, or use --precision fp32."
            )
    if model.functions:
        raise PrecisionError(f"{path} has local functions. Inline them first (onnx.inliner.inline_local_functions).")


def constants_as_initialisers(graph: Any) -> None:
    """Turn Constant nodes into initialisers, so that there is one kind of constant."""
    import onnx

    rest = []
    for node in graph.node:
        value = {a.name: a for a in node.attribute}.get("value") if node.op_type == "Constant" else None
        if value is None:
            rest.append(node)
            continue
        tensor = graph.initializer.add()
        tensor.CopyFrom(value.t)
        tensor.name = node.output[0]
    replace_nodes(graph, [onnx.NodeProto.FromString(n.SerializeToString()) for n in rest])


def replace_nodes(graph: Any, nodes: list[Any]) -> None:
    """Give a graph other nodes (copies: clearing a repeated field frees what it held)."""
    del graph.node[:]
    graph.node.extend(nodes)


@lru_cache(maxsize=512)
def formals(op: str, opset: int, inputs: int, outputs: int) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """Element types that ONNX allows at each input and output of an operator, as ("tensor(float)", ...)."""
    import onnx

    schema = onnx.defs.get_schema(op, opset)
    allowed = {c.type_param_str: tuple(c.allowed_type_strs) for c in schema.type_constraints}

    def each(parameters: Any, count: int) -> list[tuple[str, ...]]:
        # The last parameter may be variadic.
        chosen = [parameters[min(i, len(parameters) - 1)] for i in range(count)]
        return [allowed.get(p.type_str, (p.type_str,)) for p in chosen]

    return each(schema.inputs, inputs), each(schema.outputs, outputs)


def formals_of(node: Any, opset: int) -> tuple[list[tuple[str, ...]], list[tuple[str, ...]]]:
    """`formals` of a node, by its declaration if its operator is outside ONNX."""
    operator = declared(node)
    if operator is not None:
        return operator.formals(len(node.input), len(node.output))
    return formals(node.op_type, opset, len(node.input), len(node.output))
