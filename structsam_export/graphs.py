"""ONNX files of others, looked through before any parser sees them.

Parsers of runtimes follow whatever a graph says: they read files it names, and die of local functions that call
themselves. Here a graph is read by protobuf alone, which stops at 100 levels, and refused for what no export has.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from structsam_export.errors import ArtifactError, shortened
from structsam_export.paths import is_bare
from structsam_export.reading import check_file, content_errors, read_errors
from structsam_export.supervise import parsing

LARGEST = 1 << 31  # bytes of an ONNX file; protobuf stops there
CALLS = 100_000  # nodes that local functions may grow to once they are inlined


def load(path: Path) -> Any:
    """An ONNX file without what lies beside it, as an `onnx.ModelProto`.

    Raises:
        ArtifactError: it cannot be read, is no ONNX, its weights lie elsewhere than in a plain file beside it, or its
            local functions have no end.
    """
    import onnx
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    check_file(path, "File", ArtifactError)
    if path.stat().st_size > LARGEST:
        raise ArtifactError(f"{path} is no ONNX file (larger than 2 GiB). Export again with --force.")
    try:
        with read_errors(path, "File", ArtifactError), parsing("protobuf", path):
            model = onnx.load(str(path), load_external_data=False)
    except DecodeError as error:
        raise ArtifactError(f"{path} is no ONNX file ({error}). Export again with --force.") from error
    if not model.HasField("graph") or not model.graph.output:
        raise ArtifactError(f"{path} is no ONNX file (it has no graph). Export again with --force.")
    with content_errors(path):
        for location in locations(model):
            check_beside(path, location)
        check_functions(model, path)
    return model


def check_beside(path: Path, location: str) -> None:
    """Refuse weights that lie elsewhere than in a plain file beside their graph, which no other place can change.

    Raises:
        ArtifactError: a path, a link, a file with several names, or no file at all.
    """
    beside = path.parent / location
    plain = is_bare(location) and not beside.is_symlink() and beside.is_file()
    if not plain or beside.stat().st_nlink > 1:
        raise ArtifactError(
            f"{path} keeps weights in {shortened(repr(location))}, which is no plain file beside it (with no other "
            "name). Export again, or copy the folder."
        )


@lru_cache(maxsize=64)
def locations_in(path: Path, sha256: str) -> frozenset[str]:
    """Names of the files that an ONNX file keeps weights in; read once for each content.

    Raises:
        ArtifactError: see `load`.
    """
    return frozenset(locations(load(path)))


def locations(model: Any) -> set[str]:
    """Names of the files that tensors of a model point to, also those in attributes, subgraphs and functions."""
    import onnx

    external = [t for t in tensors(model) if t.data_location == onnx.TensorProto.EXTERNAL]
    named = ([e.value for e in tensor.external_data if e.key == "location"] for tensor in external)
    return {name for names in named for name in names or [""]}  # all of them: parsers differ in which one counts


def tensors(model: Any) -> Iterator[Any]:
    """Every tensor of a model."""
    for graph in graphs_of(model):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
    for node in nodes_of(model):
        for attribute in node.attribute:
            yield from (attribute.t, *attribute.tensors)
            for sparse in (attribute.sparse_tensor, *attribute.sparse_tensors):
                yield from (sparse.values, sparse.indices)


def graphs_of(model: Any) -> Iterator[Any]:
    """The graph of a model, and all graphs in attributes."""
    yield model.graph
    for node in nodes_of(model):
        for attribute in node.attribute:
            yield from (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else []))


def nodes_of(model: Any) -> Iterator[Any]:
    """Every node of a model: of its graph, of its functions, and of graphs in their attributes."""
    yield from nodes_within(model.graph.node)
    for function in model.functions:
        yield from nodes_within(function.node)


def nodes_within(nodes: Any) -> Iterator[Any]:
    """Nodes, and those of graphs in their attributes."""
    waiting = list(nodes)
    while waiting:
        node = waiting.pop()
        yield node
        for attribute in node.attribute:
            for graph in (*attribute.graphs, *([attribute.g] if attribute.HasField("g") else [])):
                waiting.extend(graph.node)


def check_functions(model: Any, path: Path) -> None:
    """Refuse local functions that call themselves, or that grow beyond all bounds once they are inlined.

    Raises:
        ArtifactError: with the function's name.
    """
    called: dict[tuple[str, str], list[tuple[str, str]]] = {}
    for f in model.functions:  # overloads count as one
        called.setdefault((f.domain, f.name), []).extend((n.domain, n.op_type) for n in nodes_within(f.node))
    sizes: dict[tuple[str, str], int] = {}
    for first in called:
        waiting, within = [(first, False)], set[tuple[str, str]]()
        while waiting:  # depth first without recursion: a chain may be long
            key, done = waiting.pop()
            if done:
                within.discard(key)
                sizes[key] = sum(sizes.get(inner, 1) for inner in called[key])
            elif key not in sizes:
                if key in within:
                    raise ArtifactError(f"{path} has a local function {shown(key)} that calls itself. Export again.")
                within.add(key)
                waiting.append((key, True))
                if loop := next((inner for inner in called[key] if inner in within), None):
                    raise ArtifactError(f"{path} has a local function {shown(loop)} that calls itself. Export again.")
                waiting += [(inner, False) for inner in set(called[key]) if inner in called and inner not in sizes]
            if sizes.get(key, 0) > CALLS:
                raise ArtifactError(f"{path} has a local function {shown(key)} of more than {CALLS} nodes.")
    total = sum(sizes.get((n.domain, n.op_type), 1) for n in nodes_within(model.graph.node))
    if total > 10 * CALLS:
        raise ArtifactError(f"{path} has more than {10 * CALLS} nodes once its functions are inlined.")


def shown(key: tuple[str, str]) -> str:
    """The name of a local function for a message."""
    return shortened(repr(f"{key[0]}:{key[1]}"))
