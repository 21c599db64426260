"""Graphs for other programs: an export's graphs in the middle, what the program expects around them.

An export's own graph is not changed: its nodes come under a prefix ("encoder/", "decoder/"), and its inputs and outputs
are connected to what surrounds it. Large weights stay in their file (`rewrite.weights`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from structsam_export.errors import ArtifactError
from structsam_export.reading import content_errors

FLOAT, INT64 = "float32", "int64"


@dataclass(frozen=True)
class Core:
    """A graph of an export, without the weights beside it; `path` is its file."""

    model: Any
    path: Path

    @classmethod
    def read(cls, path: Path) -> Core:
        """A verified ONNX file.

        Raises:
            ArtifactError: no ONNX file that can be used.
        """
        from structsam_export.graphs import load

        return cls(load(path), path)

    @property
    def opset(self) -> int:
        """Version of ONNX's own operators."""
        return next((int(o.version) for o in self.model.opset_import if o.domain in ("", "ai.onnx")), 0)


@dataclass
class ClientGraph:
    """A graph as a program expects it, built operator by operator.

    Args:
        name: of the graph.
        about: its doc string: what goes in and what comes out.
    """

    name: str
    about: str
    nodes: list[Any] = field(default_factory=list)
    weights: list[Any] = field(default_factory=list)
    inputs: list[Any] = field(default_factory=list)
    outputs: list[Any] = field(default_factory=list)
    cores: list[Core] = field(default_factory=list)
    functions: dict[tuple[str, str], Any] = field(default_factory=dict)
    domains: dict[str, int] = field(default_factory=dict)
    constants: dict[tuple[str, tuple[int, ...], bytes], str] = field(default_factory=dict)

    def input(self, name: str, kind: str, shape: Sequence[int | str], about: str) -> str:
        """An input of the graph; sizes that are names are free."""
        self.inputs.append(value_info(name, kind, shape, about))
        return name

    def output(self, name: str, value: str, shape: Sequence[int | str], about: str) -> None:
        """A float32 output of the graph, the tensor `value` under another name."""
        self.op("Identity", value, output=name)
        self.outputs.append(value_info(name, FLOAT, shape, about))

    def constant(self, values: Any, kind: str = INT64) -> str:
        """A constant tensor."""
        import numpy as np
        from onnx import numpy_helper

        array = np.asarray(values, kind)
        key = (kind, array.shape, array.tobytes())
        if key not in self.constants:
            self.constants[key] = f"client/constant.{len(self.constants)}"
            self.weights.append(numpy_helper.from_array(array, self.constants[key]))
        return self.constants[key]

    def op(self, kind: str, *inputs: str, output: str | None = None, **attributes: Any) -> str:
        """An operator with one output; returns the output's name."""
        from onnx import helper

        name = f"client/{kind}.{len(self.nodes)}"
        made = output or f"{name}.out"
        self.nodes.append(helper.make_node(kind, list(inputs), [made], name=name, **attributes))
        return made

    def cast(self, value: str, kind: str) -> str:
        """A tensor in another type."""
        return self.op("Cast", value, to=onnx_type(kind))

    def run(self, core: Core, part: str, feeds: Mapping[str, str]) -> dict[str, str]:
        """Put an export's graph here.

        Args:
            core: the graph.
            part: what it is; becomes the prefix of its names.
            feeds: its inputs -> tensors of this graph.

        Returns:
            Its outputs -> tensors of this graph.

        Raises:
            ArtifactError: it has other inputs than an export's graph has, or another opset than an earlier one.
        """
        from onnx import compose

        graph = core.model.graph
        if sorted(i.name for i in graph.input) != sorted(feeds):
            names = ", ".join(i.name for i in graph.input)
            raise ArtifactError(f"{core.path} takes {names}, not {', '.join(feeds)}. Export again with --force.")
        for domain in core.model.opset_import:
            if self.domains.setdefault(domain.domain, domain.version) != domain.version:
                raise ArtifactError(
                    f"{core.path} has another opset than the part beside it. Export again with --force."
                )
        prefix = f"{part}/"
        with content_errors(core.path):
            inner = compose.add_prefix(core.model, prefix, rename_functions=False)
        for name, tensor in feeds.items():
            self.op("Identity", tensor, output=prefix + name)
        self.nodes += inner.graph.node
        self.weights += inner.graph.initializer
        self.functions |= {(f.domain, f.name): f for f in inner.functions}
        self.cores.append(core)
        return {o.name: prefix + o.name for o in graph.output}

    def save(self, path: Path, facts: Mapping[str, Any], beside: str = "{name}.data") -> bool:
        """Write the graph, and check the file.

        Args:
            path: the file.
            facts: its metadata; values become text.
            beside: name of the file for weights beyond the limit of `rewrite`, from the path's `name` and `stem`.

        Returns:
            Whether its weights lie beside it.

        Raises:
            ArtifactError: it is not a valid graph, so that an export's graph was none.
        """
        import onnx
        from onnx import helper

        from structsam_export import __version__
        from structsam_export.rewrite import INLINE_LIMIT
        from structsam_export.rewrite.weights import save

        graph = helper.make_graph(self.nodes, self.name, self.inputs, self.outputs, self.weights, self.about)
        model = helper.make_model(
            graph,
            producer_name="structsam-export",
            producer_version=__version__,
            doc_string=self.about,
            opset_imports=[helper.make_opsetid(domain, version) for domain, version in self.domains.items()],
            ir_version=max(core.model.ir_version for core in self.cores),
            functions=list(self.functions.values()),
        )
        helper.set_model_props(model, {name: str(value) for name, value in facts.items()})
        main = self._inlined(model)
        with content_errors(main.path):
            save(model, main.path, path, INLINE_LIMIT, beside)
            onnx.checker.check_model(str(path))
        return path.with_name(beside.format(name=path.name, stem=path.stem)).exists()

    def _inlined(self, model: Any) -> Core:
        """The core whose weights may stay beside; those of all others go into the graph, so that one file is left."""
        from onnx import TensorProto
        from onnx.external_data_helper import load_external_data_for_tensor, uses_external_data

        main = max(self.cores, key=lambda core: sum(t.ByteSize() for t in core.model.graph.initializer) + _beside(core))
        own = f"{main.path.name}.data"
        for tensor in model.graph.initializer:
            if uses_external_data(tensor) and own not in {e.value for e in tensor.external_data}:
                load_external_data_for_tensor(tensor, str(main.path.parent))
                tensor.data_location = TensorProto.DEFAULT
                del tensor.external_data[:]
        return main


def _beside(core: Core) -> int:
    """Bytes of a graph's weights in the file beside it."""
    data = core.path.with_name(f"{core.path.name}.data")
    return data.stat().st_size if data.exists() else 0


def value_info(name: str, kind: str, shape: Sequence[int | str], about: str) -> Any:
    """An input or output with a doc string."""
    from onnx import helper

    return helper.make_tensor_value_info(name, onnx_type(kind), list(shape), about)


def onnx_type(kind: str) -> int:
    """ONNX's number of a NumPy type."""
    import numpy as np
    from onnx import helper

    return int(helper.np_dtype_to_tensor_dtype(np.dtype(kind)))
