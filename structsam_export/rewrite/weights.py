"""Big weights stay in their file while a graph is rewritten.

Rules move nodes, not matrices. Large external weights become graph inputs for as long as rules run, and initialisers
again afterwards; ViT-H's 2.5 GB are never in memory, and its rewritten graph has a copy of the traced graph's file.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from structsam_export.errors import ArtifactError, shortened
from structsam_export.graphs import load, locations
from structsam_export.rewrite.subgraphs import names_read

# Smaller tensors (index tables, relative positions) are loaded, so that constants can be folded.
LARGE = 1 << 20
# Patterns of fused operators read tables of positions, up to a few MB; no weight of ViT-H is as small.
TABLES = 5 << 20


def detach(model: Any, base: Path, large: int | None = None) -> list[Any]:
    """Turn large external initialisers of an `onnx.ModelProto` into inputs and load the small ones.

    Args:
        model: loaded with `load_external_data=False`; changed in place.
        base: folder of the data file.
        large: bytes from which on a tensor is set aside; None: `LARGE`.

    Returns:
        The detached `onnx.TensorProto`s, for `attach`.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

    limit = LARGE if large is None else large
    graph, detached, kept = model.graph, [], []
    for tensor in graph.initializer:
        if uses_external_data(tensor) and data_bytes(tensor) > limit:
            detached.append(tensor)
            graph.input.append(onnx.helper.make_tensor_value_info(tensor.name, tensor.data_type, tensor.dims))
            continue
        if uses_external_data(tensor):
            load_external_data_for_tensor(tensor, str(base))
            tensor.data_location = onnx.TensorProto.DEFAULT
            del tensor.external_data[:]
        kept.append(tensor)
    detached = [copy_of(t) for t in detached]
    kept = [copy_of(t) for t in kept]
    del graph.initializer[:]
    graph.initializer.extend(kept)
    return detached


def attach(model: Any, weights: list[Any]) -> None:
    """Turn the inputs that `detach` made back into initialisers, as far as the graph still uses them."""
    graph = model.graph
    used = names_read(graph)
    names = {t.name for t in weights}
    inputs = [i for i in graph.input if i.name not in names]
    del graph.input[:]
    graph.input.extend(inputs)
    graph.initializer.extend(t for t in weights if t.name in used)


def save(model: Any, source: Path, target: Path, inline_limit: int, beside: str = "{name}.data") -> None:
    """Write a graph whose large weights still point into `<source>.data`.

    Up to `inline_limit` bytes the weights go into the file; beyond, `<target>.data` (or what `beside` makes of the
    target's name and stem) is the source's data file under another name, copied, as onnx reads no data from files with
    several hard links. `target` may be `source`.

    Raises:
        ArtifactError: weights lie in another file than `<source>.data`.
    """
    import onnx
    from onnx.external_data_helper import load_external_data_for_model

    external = [t for t in model.graph.initializer if t.data_location == onnx.TensorProto.EXTERNAL]
    if strays := locations(model) - {f"{source.name}.data"}:
        raise ArtifactError(
            f"{source} keeps weights in {shortened(repr(min(strays)))}, not in {source.name}.data, the one file "
            "beside it that manifests list. Export again with --force."
        )
    data = target.with_name(beside.format(name=target.name, stem=target.stem))
    if sum(data_bytes(t) for t in external) <= inline_limit:
        load_external_data_for_model(model, str(source.parent))
        onnx.save(model, str(target))
        data.unlink(missing_ok=True)
        return
    for tensor in external:
        for entry in tensor.external_data:
            if entry.key == "location":
                entry.value = data.name
    if target.resolve() != source.resolve():
        shutil.copyfile(source.with_name(f"{source.name}.data"), data)
    onnx.save(model, str(target))


def copy_file(source: Path, target: Path) -> int:
    """Copy an ONNX file whose weights may lie in `<source>.data`, which may be `target` itself; its number of nodes."""
    import onnx

    model = load(source)
    if any(t.data_location == onnx.TensorProto.EXTERNAL for t in model.graph.initializer):
        save(model, source, target, 0)
    elif target.resolve() != source.resolve():
        shutil.copyfile(source, target)
        target.with_name(f"{target.name}.data").unlink(missing_ok=True)
    return len(model.graph.node)


def data_bytes(tensor: Any) -> int:
    """Bytes of a tensor's values."""
    from math import prod

    import onnx

    return int(onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize * prod(tensor.dims))


def copy_of(tensor: Any) -> Any:
    """A message of its own, since clearing a repeated field frees what it held."""
    import onnx

    copy = onnx.TensorProto()
    copy.CopyFrom(tensor)
    return copy
