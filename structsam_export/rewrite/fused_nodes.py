"""What patterns of fused operators share: parts of a graph as models of their own, and nodes in their place.

A pattern proposes a part of the graph (its inputs, its outputs, the operator's attributes). It is taken only if it
computes the same as the operator's own function on random numbers: what a graph computes is decided by running it, not
by how it is spelled.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from structsam_export.fused import DOMAIN, PLUGINS, VERSION, add_functions
from structsam_export.rewrite.match import fresh, static_shape

if TYPE_CHECKING:
    import numpy as np
    import onnx_graphsurgeon as gs

    Arrays = Mapping[str, np.ndarray]
    Replace = Callable[[gs.Graph, list[Any], list[Any], dict[str, int], str], bool]

# Relative to the largest value: other orders of sums in float32, and roundings in between in the short types.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 2e-2}


def between(inputs: Sequence[Any], outputs: Sequence[Any]) -> list[Any] | None:
    """Nodes that make `outputs` from all of `inputs` and constants alone; None if they read less or anything else."""
    stop, reached = {id(t) for t in inputs}, set[int]()
    found: dict[int, Any] = {}
    waiting = list(outputs)
    while waiting:
        tensor = waiting.pop()
        if id(tensor) in stop:
            reached.add(id(tensor))
            continue
        if hasattr(tensor, "values"):
            continue
        if not tensor.inputs:  # an input of the graph
            return None
        node = tensor.inputs[0]
        if id(node) not in found:
            found[id(node)] = node
            waiting += node.inputs
    return list(found.values()) if reached == stop else None


def same_numbers(
    graph: gs.Graph,
    replace: Replace,
    op: str,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    attrs: Mapping[str, int],
    feeds: Arrays,
) -> bool:
    """Whether the part of a graph between two sets of tensors computes what would take its place, on ONNX Runtime.

    Args:
        graph: of the tensors.
        replace: puts the operator in, a pattern's `replace_with_plugin`.
        op: the operator.
        inputs: tensors, in the order of a match, of known shapes and types.
        outputs: the same of what is made.
        attrs: of the operator.
        feeds: values of `inputs` by name; floats are converted to the tensor's type.
    """
    import numpy as np

    nodes = between(inputs, outputs)
    if nodes is None or not nodes:
        return False
    first = computed(part_of(graph, nodes, inputs, outputs), feeds)
    second = computed(alone(graph, replace, op, inputs, outputs, attrs), feeds)
    limit = max(TOLERANCE.get(kind, 0.0) for kind in map(type_name, (*inputs, *outputs)))
    for a, b in zip(first, second):
        if a.shape != b.shape:
            return False
        if a.dtype.kind in "iu":
            if not np.array_equal(a, b):
                return False
        elif not np.abs(a.astype(np.float64) - b).max(initial=0) <= limit * np.abs(a).max(initial=1e-30):
            return False
    return True


def type_name(tensor: Any) -> str:
    """A tensor's type as text; onnx-graphsurgeon holds BF16 as ONNX's number for it."""
    import numpy as np

    return "bfloat16" if isinstance(tensor.dtype, int) else np.dtype(tensor.dtype).name


def part_of(graph: gs.Graph, nodes: Sequence[Any], inputs: Sequence[Any], outputs: Sequence[Any]) -> Any:
    """Some nodes of a graph as an `onnx.ModelProto`."""
    import onnx_graphsurgeon as gs

    wanted = {id(n) for n in nodes}
    ordered = [n for n in graph.nodes if id(n) in wanted]
    part = gs.Graph(
        ordered, list(inputs), list(outputs), opset=graph.opset, import_domains=graph.import_domains, ir_version=10
    )
    return gs.export_onnx(part, do_type_check=False)


def alone(
    graph: gs.Graph,
    replace: Replace,
    op: str,
    inputs: Sequence[Any],
    outputs: Sequence[Any],
    attrs: Mapping[str, int],
) -> Any:
    """What would take the place of a part, with its function, as an `onnx.ModelProto`."""
    import onnx_graphsurgeon as gs

    part = gs.Graph(opset=graph.opset, ir_version=10)
    part.inputs = [gs.Variable(t.name, t.dtype, t.shape) for t in inputs]
    part.outputs = [gs.Variable(t.name, t.dtype, t.shape) for t in outputs]
    replace(part, list(part.inputs), list(part.outputs), dict(attrs), op)
    model = gs.export_onnx(part.toposort(), do_type_check=False)
    add_functions(model)
    return model


def computed(model: Any, feeds: Arrays) -> list[np.ndarray]:
    """Outputs of a small model on ONNX Runtime; BF16, which its CPU provider lacks, as float32."""
    import numpy as np
    import onnxruntime as ort

    in_float32(model)
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
    kinds = {"tensor(float)": np.float32, "tensor(float16)": np.float16, "tensor(int64)": np.int64}
    kinds["tensor(int32)"] = np.int32
    given = {i.name: np.asarray(feeds[i.name], kinds[i.type]) for i in session.get_inputs()}
    return [np.asarray(value) for value in session.run(None, given)]


def in_float32(model: Any) -> None:
    """Turn the BF16 tensors of a model into float32 ones."""
    from onnx import TensorProto, numpy_helper

    graph = model.graph
    for info in (*graph.input, *graph.output, *graph.value_info):
        if info.type.tensor_type.elem_type == TensorProto.BFLOAT16:
            info.type.tensor_type.elem_type = TensorProto.FLOAT
    for tensor in graph.initializer:
        if tensor.data_type == TensorProto.BFLOAT16:
            tensor.CopyFrom(numpy_helper.from_array(numpy_helper.to_array(tensor).astype("float32"), tensor.name))
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == TensorProto.BFLOAT16:
                attribute.i = TensorProto.FLOAT


def insert(graph: gs.Graph, op: str, inputs: list[Any], outputs: list[Any], attrs: Mapping[str, int]) -> Any:
    """Let a fused operator make `outputs`; int64 tensors at either side are cast from and to its int32."""
    import numpy as np
    import onnx
    import onnx_graphsurgeon as gs

    domains = list(graph.import_domains or [onnx.helper.make_opsetid("", graph.opset)])
    if DOMAIN not in {d.domain for d in domains}:
        graph.import_domains = [*domains, onnx.helper.make_opsetid(DOMAIN, int(VERSION))]
    for tensor in outputs:
        tensor.inputs.clear()
        if tensor.dtype == np.int64:
            narrowed(graph, tensor)
    fixed = {"plugin_namespace": DOMAIN, "plugin_version": VERSION}
    node = gs.Node(
        op,
        name=fresh(graph, f"{outputs[0].name}.{op}"),
        attrs={**attrs, **fixed},
        inputs=[as_int32(graph, t) for t in inputs],
        outputs=outputs,
        domain=DOMAIN,
    )
    graph.nodes.append(node)
    return node


def put_in(
    graph: gs.Graph, input_tensors: list[Any], output_tensors: list[Any], attrs: Mapping[str, int], op: str
) -> bool:
    """A pattern's `replace_with_plugin` (polygraphy's names), where an operator takes a match's tensors as they are."""
    insert(graph, op, input_tensors, output_tensors, attrs)
    graph.cleanup().toposort()
    return True


def random(shape: Sequence[int]) -> np.ndarray:
    """Values of a tensor to try a part of a graph on."""
    import numpy as np

    return np.random.default_rng(0).standard_normal(shape, np.float32)


def as_int32(graph: gs.Graph, tensor: Any) -> Any:
    """An int64 tensor as int32, by a Cast that all its readers share; any other one as it is."""
    import numpy as np
    import onnx
    import onnx_graphsurgeon as gs

    if tensor.dtype != np.int64:
        return tensor
    for node in tensor.outputs:
        if node.op == "Cast" and node.attrs["to"] in (onnx.TensorProto.INT32, np.int32):
            return node.outputs[0]
    out = gs.Variable(fresh(graph, f"{tensor.name}.int32"), np.int32, tensor.shape)
    attrs = {"to": onnx.TensorProto.INT32}
    graph.nodes.append(gs.Node("Cast", name=out.name, attrs=attrs, inputs=[tensor], outputs=[out]))
    return out


def narrowed(graph: gs.Graph, tensor: Any) -> None:
    """Make an int64 tensor int32, under its name; what else reads it gets it cast back."""
    import numpy as np
    import onnx
    import onnx_graphsurgeon as gs

    readers = list(tensor.outputs)
    tensor.dtype = np.int32
    wide = None
    for node in readers:
        if node.op == "Cast" and node.attrs["to"] in (onnx.TensorProto.INT32, np.int32):
            cast = node.outputs[0]
            for reader in list(cast.outputs):
                reader.inputs = [tensor if t is cast else t for t in reader.inputs]
            node.inputs.clear()
            continue
        if wide is None:
            wide = gs.Variable(fresh(graph, f"{tensor.name}.int64"), np.int64, tensor.shape)
            attrs = {"to": onnx.TensorProto.INT64}
            graph.nodes.append(gs.Node("Cast", name=wide.name, attrs=attrs, inputs=[tensor], outputs=[wide]))
        node.inputs = [wide if t is tensor else t for t in node.inputs]


def square_windows(tokens: int, grid: Sequence[int]) -> tuple[int, int] | None:
    """(h, w) of windows of so many tokens on a grid (H, W): the grid itself, or a square."""
    from math import isqrt

    if tokens == grid[0] * grid[1]:
        return int(grid[0]), int(grid[1])
    side = isqrt(tokens)
    return (side, side) if side * side == tokens else None


def calls_of(grid: Sequence[int], window: tuple[int, int]) -> int:
    """Windows of an image."""
    return -(-grid[0] // window[0]) * -(-grid[1] // window[1])


def upstream(tensor: Any, ops: Sequence[str]) -> Any:
    """The first tensor before this one that no node of `ops` made, along first inputs that are no constants.

    None: a node of constants alone is on the way.
    """
    while tensor is not None and tensor.inputs and tensor.inputs[0].op in ops:
        tensor = next((t for t in tensor.inputs[0].inputs if not hasattr(t, "values")), None)
    return tensor


def plans(graph: gs.Graph, part: str) -> list[Any]:
    """Tensors of all decisions of one name: `plan.<block>.<part>`."""
    import re

    named = re.compile(rf"plan\.\d+\.{part}")
    return [t for name, t in graph.tensors().items() if named.fullmatch(name) and static_shape(t) is not None]


def found(op: str, inputs: Sequence[Any], outputs: Sequence[Any], attrs: Mapping[str, int]) -> dict[str, Any]:
    """A match, as polygraphy writes it."""
    names = [[t.name for t in tensors] for tensors in (inputs, outputs)]
    return {"inputs": names[0], "outputs": names[1], "attributes": dict(attrs)}


def metadata(name: str) -> dict[str, str]:
    """A plugin's name and operator, as polygraphy asks for them."""
    return {"name": name, "op": PLUGINS[name]}
