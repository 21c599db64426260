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

# Smaller constants stay in the graph: shape inference needs the values of shapes.
LARGE = 1 << 14
# Read any type and make integers: no reason to cast.
INDIFFERENT = ("Shape", "Size")


@dataclass
class TypedGraph:
    """An `onnx.ModelProto` without its large weights, and indices over it.

    `makers`: tensor -> number of its node; `readers`: tensor -> numbers of the nodes that read it; `types`: tensor ->
    ONNX element type; `constants`: name -> `onnx.TensorProto` of every initialiser, values perhaps still in a file.
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
        """Float tensors a node computes with; shapes of tensors are not computed with."""
        return [] if node.op_type in INDIFFERENT else [name for name in node.input if self.is_float(name)]

    def float_outputs(self, node: Any) -> list[str]:
        return [name for name in node.output if self.is_float(name)]

    def maker(self, name: str, op: str = "") -> Any | None:
        """The node that makes a tensor, if it is of type `op`."""
        number = self.makers.get(name)
        node = None if number is None else self.model.graph.node[number]
        return node if node is not None and op in ("", node.op_type) else None

    def computed(self, name: str) -> bool:
        """Whether a tensor depends on the graph's inputs (as far as one node tells)."""
        return name not in self.constants

    def array(self, name: str) -> Any:
        """Values of a constant, read from its file where they are there."""
        from onnx import numpy_helper

        return numpy_helper.to_array(self.constants[name], str(self.base))


def read(path: Path) -> TypedGraph:
    """Read an ONNX file and find the type of every tensor.

    Raises:
        PrecisionError: subgraphs, functions, operators outside ONNX, other float types, or a tensor of unknown type.
    """
    import onnx

    model = onnx.load(str(path), load_external_data=False)
    constants_as_initialisers(model.graph)
    refuse(model, path)
    constants = {t.name: t for t in model.graph.initializer}
    graph = TypedGraph(model, path.parent, constants)
    inferred = onnx.shape_inference.infer_shapes(skeleton(model)).graph
    for value in (*inferred.input, *inferred.value_info, *inferred.output):
        graph.types[value.name] = value.type.tensor_type.elem_type
    graph.types |= {name: tensor.data_type for name, tensor in constants.items()}
    for i, node in enumerate(model.graph.node):
        for name in filter(None, node.output):
            graph.makers[name] = i
        for name in dict.fromkeys(filter(None, node.input)):
            graph.readers.setdefault(name, []).append(i)
    other = onnx.TensorProto.FLOAT16, onnx.TensorProto.BFLOAT16, onnx.TensorProto.DOUBLE
    for name in (*graph.makers, *constants):
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


def refuse(model: Any, path: Path) -> None:
    """Raise for what has types that cannot be seen from outside."""
    import onnx

    for node in model.graph.node:
        nested = [a.name for a in node.attribute if a.type in (onnx.AttributeProto.GRAPH, onnx.AttributeProto.GRAPHS)]
        if nested or node.domain not in ("", "ai.onnx"):
            what = "a subgraph" if nested else f"an operator of '{node.domain}'"
            raise PrecisionError(
                f"{path}: node '{node.name}' ({node.op_type}) is {what}, whose types are not ONNX's. "
                "Convert the graph before such operators are put in, or use --precision fp32."
            )
    if model.functions:
        raise PrecisionError(f"{path} has local functions. Inline them first (onnx.inliner.inline_local_functions).")


def skeleton(model: Any) -> Any:
    """A copy in which large constants are inputs: enough to infer types, small enough to copy."""
    import onnx

    copy = onnx.ModelProto(ir_version=model.ir_version)
    copy.opset_import.extend(model.opset_import)
    copy.graph.name = model.graph.name
    copy.graph.node.extend(model.graph.node)
    for part in ("input", "output", "value_info"):
        getattr(copy.graph, part).extend(getattr(model.graph, part))
    for tensor in model.graph.initializer:
        if tensor.data_location == onnx.TensorProto.EXTERNAL or tensor.ByteSize() > LARGE:
            info = onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims)
            copy.graph.input.append(info)
        else:
            copy.graph.initializer.append(tensor)
    return copy


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
    """`formals` of a node."""
    return formals(node.op_type, opset, len(node.input), len(node.output))
