"""MLPs a few hundred rows at a time: ONNX Runtime's CPU kernels then find the wide hidden rows in cache.

A half-block x + W2 gelu(W1 norm(x)) computes each row from that row alone, so rows may come in any portions. A
Scan runs the same nodes on portion after portion and reads one copy of the weights; as many nodes side by side would
each keep a copy of their own. Every row is computed as before, so the numbers are the same. In FP16 and BF16 graphs the
casts between the norm, the products and the residual sum go into the Scan as well.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING, Any

from structsam_export.rewrite.match import add, fresh, integers, only_consumer, producer, static_shape, take_over
from structsam_export.rewrite.results import Fired

if TYPE_CHECKING:
    import onnx_graphsurgeon as gs

# Rows of one portion: 512 x 3072 hidden values are 6 MiB.
ROWS = 512
ROWWISE = frozenset(("Add", "Div", "Erf", "Gelu", "Mul"))
PRODUCTS = ("MatMul", "Gemm")


def apply(graph: gs.Graph) -> Fired:
    """Rewrite MLPs on many rows as a Scan over portions of them."""
    fired, skipped = 0, list[str]()
    for node in list(graph.nodes):
        if node.op not in ("Erf", "Gelu") or (chain := mlp_around(graph, node)) is None:
            continue
        x, nodes = chain
        out = nodes[-1].outputs[0]
        shape, wide = static_shape(x), static_shape(out)
        rows = prod(shape[:-1]) if shape is not None else 0
        portion = portion_of(rows)
        if shape is None or wide is None or any(static_shape(t) is None for n in nodes for t in n.outputs):
            skipped.append(f"{node.name}: shapes are not all known")
            continue
        if portion == rows or prod(wide[:-1]) != rows:
            skipped.append(f"{node.name}: {rows} rows are few, or have no fitting divisor")
            continue
        in_portions(graph, x, nodes, rows, portion)
        fired += 1
    return Fired(fired, tuple(skipped))


def portion_of(rows: int) -> int:
    """The divisor of `rows` that is nearest to ROWS, from half to twice of it; else all of them."""
    fitting = [p for p in range(ROWS // 2, 2 * ROWS + 1) if rows % p == 0]
    return min(fitting, key=lambda p: abs(p - ROWS)) if fitting else rows


def mlp_around(graph: gs.Graph, activation: Any) -> tuple[Any, list[Any]] | None:
    """(input, nodes in order) of the MLP around an activation function, its norm and residual sum included.

    None where something else reads what is inside.
    """
    after = walk_forward(graph, activation)
    before = walk_back(activation)
    if after is None or before is None:
        return None
    inside = {id(n): n for n in (*before, *after)}
    x = before[-1].inputs[0]
    lowered, normed = cast_before(graph, x)
    norm = producer(normed, "LayerNormalization")
    if norm is not None and norm.attrs.get("axis", -1) == -1 and only_consumer(graph, normed) is not None:
        inside |= {id(n): n for n in (norm, *lowered)}
        raised, result = cast_after(graph, after[-1].outputs[0])
        total = only_consumer(graph, result)
        if total is not None and total.op == "Add" and any(t is norm.inputs[0] for t in total.inputs):
            inside |= {id(n): n for n in (*raised, total)}
        x = norm.inputs[0]
    order = {id(n): i for i, n in enumerate(graph.nodes)}
    nodes = sorted(inside.values(), key=lambda n: order[id(n)])
    known = {x.name} | {t.name for n in nodes for t in n.outputs}
    closed = all(of_rows(n, known) for n in nodes)
    private = all(id(reader) in inside for n in nodes[:-1] for t in n.outputs for reader in t.outputs)
    named = {t.name for t in graph.outputs}
    return (
        (x, nodes) if closed and private and not any(t.name in named for n in nodes[:-1] for t in n.outputs) else None
    )


def cast_before(graph: gs.Graph, tensor: Any) -> tuple[list[Any], Any]:
    """The Cast that made a tensor for one reader, if there is one, and what it was cast from."""
    cast = producer(tensor, "Cast")
    return ([cast], cast.inputs[0]) if cast is not None and only_consumer(graph, tensor) is not None else ([], tensor)


def cast_after(graph: gs.Graph, tensor: Any) -> tuple[list[Any], Any]:
    """The Cast that is a tensor's only reader, if there is one, and what it makes."""
    cast = only_consumer(graph, tensor)
    return ([cast], cast.outputs[0]) if cast is not None and cast.op == "Cast" else ([], tensor)


def of_rows(node: Any, known: set[str]) -> bool:
    """Whether a node computes rows one by one: from those of `known` tensors and what is the same for all rows."""
    if node.op in PRODUCTS:
        x, weight, *bias = node.inputs
        if x.name not in known or len(static_shape(weight) or []) != 2 or node.attrs.get("transA"):
            return False
        others = [weight, *bias]
    else:
        bias = others = [t for t in node.inputs if t.name not in known]
    shapes = [static_shape(t) for t in bias]
    same = all(s is not None and len(s) <= 2 and s[:-1] in ([], [1]) for s in shapes)
    return same and not any(t.inputs for t in others)


def walk_back(activation: Any) -> list[Any] | None:
    """Nodes before the activation, back to the product that feeds it; None if other operators stand between."""
    chain, node = [], activation
    while node.op not in PRODUCTS:
        tensor = next((t for t in node.inputs if t.inputs), None)
        if tensor is None or tensor.inputs[0].op not in (*ROWWISE, *PRODUCTS):
            return None
        node = tensor.inputs[0]
        chain.append(node)
    return chain if node.inputs[0].inputs and not node.inputs[1].inputs else None


def walk_forward(graph: gs.Graph, activation: Any) -> list[Any] | None:
    """The activation, the nodes up to the next product, and that product's bias; None if others stand between."""
    chain, node = [activation], activation
    while node.op not in PRODUCTS:
        node = only_consumer(graph, node.outputs[0])
        if node is None or node.op not in (*ROWWISE, *PRODUCTS):
            return None
        chain.append(node)
    bias = only_consumer(graph, node.outputs[0])
    if bias is not None and bias.op == "Add" and any(not t.inputs for t in bias.inputs):
        chain.append(bias)
    return chain


def in_portions(graph: gs.Graph, x: Any, nodes: list[Any], rows: int, portion: int) -> None:
    """Move `nodes`, which compute rows of the last one's output from rows of x, into the body of a Scan."""
    import onnx_graphsurgeon as gs

    out = nodes[-1].outputs[0]
    wide = static_shape(out) or []
    count, depth = rows // portion, (static_shape(x) or [0])[-1]
    portions = add(
        graph,
        "Reshape",
        [x, integers(graph, f"{x.name}.portions", [count, portion, depth])],
        x,
        [count, portion, depth],
    )
    result = add(graph, "Scan", [portions], out, [count, portion, wide[-1]], num_scan_inputs=1)
    back = add(graph, "Reshape", [result, integers(graph, f"{out.name}.rows", wide)], out, wide)
    # Both are named after the result, as several MLPs may read the same rows.
    one = gs.Variable(fresh(graph, f"{out.name}.portion.from"), x.dtype, [portion, depth])
    take_over(back.inputs[0], out)
    last = gs.Variable(fresh(graph, f"{out.name}.portion"), out.dtype, [portion, wide[-1]])
    nodes[-1].outputs = [last]
    for node in nodes:
        graph.nodes.remove(node)
        node.inputs = [one if t is x else private_copy(graph, t, node) for t in node.inputs]
        for t in node.outputs:
            t.shape = [portion, (static_shape(t) or [0])[-1]]
    result.inputs[0].attrs["body"] = gs.Graph(nodes, [one], [last], name=f"{out.name}.body", opset=graph.opset)


def private_copy(graph: gs.Graph, tensor: Any, node: Any) -> Any:
    """A copy of a small constant under another name, as a body may not hide outer names; other tensors as they are."""
    import onnx_graphsurgeon as gs

    if not isinstance(tensor, gs.Constant):
        return tensor
    return gs.Constant(fresh(graph, f"{node.name}.{tensor.name}"), tensor.values)
