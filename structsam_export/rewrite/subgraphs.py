"""Subgraphs of ONNX nodes, such as the body of a Scan, and what they read of the graph around them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any


def bodies(node: Any) -> list[Any]:
    """The subgraphs (`onnx.GraphProto`) of an `onnx.NodeProto`: the body of a Scan, the branches of an If."""
    return [graph for a in node.attribute for graph in ([a.g] if a.HasField("g") else a.graphs)]


def all_nodes(graph: Any) -> Iterator[Any]:
    """Nodes of an `onnx.GraphProto` and of its subgraphs, whatever the depth."""
    for node in graph.node:
        yield node
        for body in bodies(node):
            yield from all_nodes(body)


def names_read(graph: Any) -> set[str]:
    """Names of tensors that the nodes of an `onnx.GraphProto` and of its subgraphs read."""
    return {name for node in all_nodes(graph) for name in node.input}


def captured(node: Any) -> list[str]:
    """Names of tensors of the graph around a node that its subgraphs read, each once, in the order they are read."""
    found: list[str] = []
    for body in bodies(node):
        made = {v.name for v in body.input} | {t.name for t in body.initializer}
        made |= {name for inner in body.node for name in inner.output}
        read = [name for inner in body.node for name in (*inner.input, *captured(inner))]
        found += [name for name in (*read, *(v.name for v in body.output)) if name and name not in made]
    return list(dict.fromkeys(found))


def rename_captured(node: Any, names: dict[str, str]) -> None:
    """Let the subgraphs of a node read other tensors of the graph around it; a body never hides an outer name."""
    for body in bodies(node):
        for inner in all_nodes(body):
            for slot, name in enumerate(inner.input):
                inner.input[slot] = names.get(name, name)
