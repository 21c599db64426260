"""Which nodes of an encoder or decoder keep FP32, and why; all others compute in FP16 or BF16.

Kept, in order of precedence:

    decision   results reach the graph's outputs through integers only: energies, similarities, what TopK sorts.
               A token that moves is a large error, these nodes are small, and rounding is what makes ties.
    norm       LayerNormalization, and ReduceMean-Sub-Pow-ReduceMean-Sqrt-Div chains with their scale and shift:
               sums of squares overflow FP16 and cancel in it.
    position   Sin, Cos and what leads to them: coordinates need more than 11 bits.
    range      activations or constants that do not fit; see `calibrate`.
    operator   there is no such operator for the type, or its subgraphs (the body of a Scan) compute in FP32.
    stem       patch embedding: its errors reach every decision, and it is half a percent of the work.
    residual   the sums x + attention and x + MLP that a norm reads next: rounding errors add up over all blocks.
    movement   moves data that was FP32 and is needed as FP32.

Nodes that only move data otherwise compute in low precision: half the bytes, and the cast stands where FP32 ends.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.subgraphs import bodies

if TYPE_CHECKING:
    from structsam_export.precision.typed import TypedGraph

DATA_MOVEMENT = frozenset(
    ("Concat", "DepthToSpace", "Expand", "Flatten", "Gather", "GatherElements", "GatherND", "Identity", "Pad")
    + ("Reshape", "Slice", "SpaceToDepth", "Split", "Squeeze", "Tile", "Transpose", "Unsqueeze", "Where")
)
# They make floats of integers or shapes, and can do so in either type.
MAKE_FLOATS = frozenset(("Cast", "ConstantOfShape", "OneHot"))
# They compare or count, and low precision cannot.
EXACT = frozenset(
    ("ArgMax", "ArgMin", "CumSum", "Equal", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "NonZero", "Range")
    + ("TopK",)
)
# ONNX has BF16 convolutions from opset 22 on and no BF16 Einsum. TensorRT computes both, and nothing else runs BF16
# graphs here; its builder stops at transposed convolutions ("Could not infer output types", TensorRT-RTX 1.7).
BF16_IN_TENSORRT = {"Conv": True, "Einsum": True, "ConvTranspose": False}
# Where the time goes: in FP32 only if there is no other way.
HEAVY = frozenset(
    ("Attention", "Conv", "ConvTranspose", "Einsum", "Gemm", "MatMul", "MultiHeadAttention", "Scan", "Softmax")
)
IMAGE = "image"  # input of an encoder


@dataclass(frozen=True)
class Kept:
    """Why a node keeps FP32; `detail` is for people."""

    reason: str
    detail: str = ""


def keep_fp32(
    graph: TypedGraph, low: str, unfit: Mapping[str, str], *, also: Collection[str] = ("stem", "residual")
) -> dict[int, Kept]:
    """Nodes with float tensors that keep FP32, by number.

    Args:
        graph: the graph.
        low: "tensor(float16)" or "tensor(bfloat16)".
        unfit: tensors that low precision cannot hold -> what is wrong with them.
        also: the reasons that are a trade of accuracy for speed.
    """
    kept: dict[int, Kept] = {}
    floats = [i for i, n in enumerate(graph.nodes) if graph.float_inputs(n) or graph.float_outputs(n)]
    numeric = numeric_nodes(graph)
    for i in floats:
        if i not in numeric or graph.model.graph.node[i].op_type in EXACT:
            kept[i] = Kept("decision")
    for i in norms(graph):
        kept.setdefault(i, Kept("norm"))
    for i in positions(graph):
        kept.setdefault(i, Kept("position"))
    for i in floats:
        node = graph.model.graph.node[i]
        wrong = [unfit[name] for name in (*node.input, *node.output) if name in unfit]
        if wrong:
            kept.setdefault(i, Kept("range", wrong[0]))
        elif bodies(node):
            kept.setdefault(i, Kept("operator", f"the subgraph of {node.op_type} computes in FP32"))
        elif not computes_in(graph, node, low):
            kept.setdefault(i, Kept("operator", f"no {node.op_type} for {low}"))
    for reason, found in (("stem", stem(graph, kept)), ("residual", residual_sums(graph, kept))):
        for i in found if reason in also else ():
            kept.setdefault(i, Kept(reason))
    if "residual" in also:
        for i in on_the_way_to_norms(graph, kept):
            kept[i] = Kept("residual")
    keep_movement(graph, floats, kept)
    return kept


def numeric_nodes(graph: TypedGraph) -> set[int]:
    """Nodes from which a float path leads to a float output."""
    found: set[int] = set()
    todo = [name for name in graph.outputs if graph.is_float(name)]
    while todo:
        number = graph.makers.get(todo.pop())
        if number is not None and number not in found:
            found.add(number)
            todo += graph.float_inputs(graph.model.graph.node[number])
    return found


def norms(graph: TypedGraph) -> Iterator[int]:
    """Nodes of layer normalisations, written as one operator or as a chain."""
    for i, node in enumerate(graph.nodes):
        if node.op_type in ("LayerNormalization", "GroupNormalization", "InstanceNormalization"):
            yield i
        elif node.op_type == "Div":
            chain = norm_chain(graph, node)
            if chain:
                yield from chain
                yield i
                yield from affine(graph, node.output[0])


def norm_chain(graph: TypedGraph, div: Any) -> list[int]:
    """Numbers of the nodes behind (x - mean) / sqrt(mean((x - mean)^2) + eps), or nothing if `div` is not that."""
    root = graph.maker(div.input[1], "Sqrt")
    biased = graph.maker(root.input[0], "Add") if root else None
    before = [name for name in biased.input if graph.computed(name)] if biased else []
    variance = graph.maker(before[0], "ReduceMean") if len(before) == 1 else None
    square = graph.maker(variance.input[0]) if variance else None
    if square is None or square.op_type not in ("Pow", "Mul") or square.input[0] != div.input[0]:
        return []
    centred = graph.maker(div.input[0], "Sub")
    mean = graph.maker(centred.input[1], "ReduceMean") if centred else None
    if centred is None or mean is None or mean.input[0] != centred.input[0]:
        return []
    chain: tuple[Any, ...] = (mean, centred, square, variance, biased, root)
    return [graph.makers[n.output[0]] for n in chain]


def affine(graph: TypedGraph, name: str) -> Iterator[int]:
    """The scale and shift that follow a normalised tensor."""
    for op in ("Mul", "Add"):
        readers = graph.readers.get(name, [])
        node = graph.model.graph.node[readers[0]] if len(readers) == 1 else None
        if node is None or node.op_type != op or all(graph.computed(n) for n in node.input):
            return
        yield readers[0]
        name = node.output[0]


def positions(graph: TypedGraph) -> set[int]:
    """Sin and Cos and every float node before them."""
    found: set[int] = set()
    todo = [i for i, n in enumerate(graph.nodes) if n.op_type in ("Sin", "Cos")]
    while todo:
        i = todo.pop()
        if i not in found:
            found.add(i)
            names = graph.float_inputs(graph.model.graph.node[i])
            todo += [graph.makers[name] for name in names if name in graph.makers]
    return found


def stem(graph: TypedGraph, kept: Mapping[int, Kept]) -> list[int]:
    """Nodes between an encoder's image and its first norm."""
    nodes = graph.nodes
    norm = {i for i, why in kept.items() if why.reason == "norm"}
    normed = set(norm)  # a norm is before them
    after: set[int] = set()  # only the image is
    for i, node in enumerate(nodes):
        names = graph.float_inputs(node)
        if any(graph.makers.get(n) in normed for n in names):
            normed.add(i)
        elif i not in norm and any(n == IMAGE or graph.makers.get(n) in after for n in names):
            after.add(i)
    found: set[int] = set()
    todo = [name for i in norm for name in graph.float_inputs(nodes[i])]
    while todo:
        number = graph.makers.get(todo.pop())
        if number in after and number not in found:
            found.add(number)
            todo += graph.float_inputs(nodes[number])
    return sorted(found)


def residual_sums(graph: TypedGraph, kept: Mapping[int, Kept]) -> list[int]:
    """Sums of two computed tensors that a norm reads, and those that go on from such a sum."""
    nodes = graph.nodes
    sums = {
        i
        for i, node in enumerate(nodes)
        if node.op_type == "Add" and i not in kept and all(graph.computed(n) and graph.is_float(n) for n in node.input)
    }
    norm = {i for i, why in kept.items() if why.reason == "norm"}
    found = {made for i in norm for name in nodes[i].input if (made := moved_from(graph, name)) in sums}
    for i in sorted(sums):
        if any(moved_from(graph, name) in found for name in nodes[i].input):
            found.add(i)
    return sorted(i for i in found if i is not None)


def on_the_way_to_norms(graph: TypedGraph, kept: Mapping[int, Kept]) -> list[int]:
    """Nodes that only merge or move FP32 tokens before a norm: tokens of an MLP that computes on fewer of them."""
    nodes = graph.nodes
    todo = [name for i, why in kept.items() if why.reason == "norm" for name in nodes[i].input]
    found: set[int] = set()
    while todo:
        number = graph.makers.get(todo.pop())
        if number is not None and number not in kept and number not in found and nodes[number].op_type not in HEAVY:
            found.add(number)
            todo += graph.float_inputs(nodes[number])
    fp32: dict[int, Kept] = dict(kept)
    for i in sorted(found):
        if all(is_fp32(graph, name, fp32) for name in graph.float_inputs(nodes[i])):
            fp32[i] = Kept("residual")
    return [i for i in fp32 if i not in kept]


def moved_from(graph: TypedGraph, name: str) -> int | None:
    """The node that computed a tensor, before anything that only moved it."""
    number = graph.makers.get(name)
    while number is not None and graph.model.graph.node[number].op_type in DATA_MOVEMENT:
        number = graph.makers.get(graph.model.graph.node[number].input[0])
    return number


def computes_in(graph: TypedGraph, node: Any, low: str) -> bool:
    """Whether an operator exists for a type, wherever the node has float32 that is free to change."""
    from structsam_export.precision.typed import formals_of

    inputs, outputs = formals_of(node, graph.opset)
    slots = [*zip(node.input, inputs), *zip(node.output, outputs)]
    free = [allowed for name, allowed in slots if graph.is_float(name) and allowed != ("tensor(float)",)]
    if low == "tensor(bfloat16)" and node.op_type in BF16_IN_TENSORRT:
        return BF16_IN_TENSORRT[node.op_type]
    return all(low in allowed for allowed in free)


def keep_movement(graph: TypedGraph, floats: list[int], kept: dict[int, Kept]) -> None:
    """Keep data-movement nodes through which FP32 data pass to FP32 nodes, so that no tensor is cast there and back."""
    nodes = graph.nodes
    free = {i for i in floats if i not in kept and nodes[i].op_type in DATA_MOVEMENT | MAKE_FLOATS}
    outputs = set(graph.outputs)
    wanted: set[int] = set()  # as FP32, by what comes after
    for i in reversed(floats):
        if i not in free:
            continue
        after = [
            r for name in graph.float_outputs(nodes[i]) for r in graph.readers.get(name, ()) if reads(graph, r, name)
        ]
        if any(r in kept or r in wanted for r in after) or outputs & set(nodes[i].output):
            wanted.add(i)
    for i in floats:
        if i in free and i in wanted and all(is_fp32(graph, name, kept) for name in graph.float_inputs(nodes[i])):
            kept[i] = Kept("movement")


def reads(graph: TypedGraph, number: int, name: str) -> bool:
    """Whether a node computes with a tensor, not only with its shape."""
    return name in graph.float_inputs(graph.model.graph.node[number])


def is_fp32(graph: TypedGraph, name: str, kept: Mapping[int, Kept]) -> bool:
    """Whether a tensor is FP32 where it is made; constants can be anything."""
    return name not in graph.makers or graph.makers[name] in kept
