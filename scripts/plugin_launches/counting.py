"""Layers of a network, and what merging adds to each block."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

DENSE_ATTENTION = "RelposAttention of a dense block"
DENSE = {"NORMALIZATION", "MATRIX_MULTIPLY", "ELEMENTWISE", "CONSTANT", "CAST", "SHUFFLE", "SOFTMAX"}


def counted(path: Path) -> dict[str, Any]:
    """Nodes, layers, plugin layers, and for each block what merging adds, by operator or kind of layer."""
    import onnx

    from structsam_export.backends.tensorrt_rtx import library
    from structsam_export.fused import part

    trt = library()
    creators = part("registration", "v3_python").register(trt)
    log = trt.Logger(trt.Logger.ERROR)
    builder = trt.Builder(log)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, log)
    if not parser.parse_from_file(str(path)):
        raise SystemExit(f"{path}: {parser.get_error(0).desc()}")
    nodes = onnx.load(str(path), load_external_data=False).graph.node
    operators = {node.name: node.op_type for node in nodes}
    # Attention with every place's token is that of a block that does not merge.
    dense = {n.name for n in nodes if any(a.name == "aligned" and a.i for a in n.attribute)}
    operators |= dict.fromkeys(dense, DENSE_ATTENTION)
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    kinds = [str(layer.type).rpartition(".")[2] for layer in layers]
    del creators
    return {
        "nodes": len(nodes),
        "layers": len(layers),
        "plugins": kinds.count("PLUGIN_V3"),
        "blocks": blocks(trt, layers, kinds, operators),
    }


def blocks(trt: Any, layers: list[Any], kinds: list[str], operators: dict[str, str]) -> list[dict[str, int]]:
    """What merging adds between the first and the second norm of every block; windows are a dense block's own."""
    made: list[dict[str, int]] = []
    added: Counter[str] = Counter()
    norms, attends, dense = 0, False, False
    for layer, kind in zip(layers, kinds):
        if kind == "NORMALIZATION":
            if norms % 2 == 1 and attends:  # the neck has norms, too
                made.append({} if dense else dict(added))
            norms, attends, dense, added = norms + 1, False, False, Counter()
        elif kind == "PLUGIN_V3":
            operator = next((op for name, op in operators.items() if layer.name.startswith(name)), layer.name)
            if operator in ("RelposAttention", DENSE_ATTENTION):
                attends, dense = True, operator == DENSE_ATTENTION
            else:
                added[operator] += 1
        elif kind == "SOFTMAX":
            attends = True
        elif kind not in DENSE or (kind == "SHUFFLE" and moves(trt, layer)):
            added[kind.lower()] += 1
    return made


def moves(trt: Any, layer: Any) -> bool:
    """Whether a shuffle transposes axes that hold more than one element."""
    layer.__class__ = trt.IShuffleLayer  # the network gives base classes out
    first, last = list(layer.get_input(0).shape), list(layer.get_output(0).shape)
    order = [axis for axis in list(layer.first_transpose)[: len(first)] if first[axis] != 1]
    after = list(layer.second_transpose)[: len(last)]
    return order != sorted(order) or after != sorted(after)
