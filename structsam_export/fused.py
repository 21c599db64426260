"""Fused operators: where their sources are, and which of them a command asks for.

The sources live in `plugins/<name>/` at the top of the repository; an installed package has the same folder inside
(`setup.py`). They are loaded from there by path: `function.py`, what an operator computes in ONNX's own ones, and
`pattern.py`, which finds and replaces what it computes in a graph.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from structsam_export.errors import ArtifactError, UsageError

DOMAIN, VERSION = "structsam", "1"
# Name -> operator, in the order they are put in.
PLUGINS = {
    "relpos_attention": "RelposAttention",
    "token_unmerge": "TokenUnmerge",
    "token_merge": "TokenMerge",
    "token_energy": "TokenEnergy",
    "merge_plan": "MergePlan",
}


def plugin_folder() -> Path:
    """The folder of all plugins: inside an installed package, or beside the package in a checkout.

    Raises:
        ArtifactError: in neither place.
    """
    package = Path(__file__).parent
    for folder in (package / "plugins", package.parent / "plugins"):
        if (folder / "relpos_attention" / "pattern.py").is_file():
            return folder
    raise ArtifactError(f"{package} has no plugins beside it. Install structsam-export again, or use --plugins none.")


@cache
def part(name: str, file: str) -> Any:
    """A module of a plugin (`function`, `pattern`) or of the folder `registration`.

    Raises:
        ArtifactError: the sources are not there.
    """
    from importlib.util import module_from_spec, spec_from_file_location

    path = plugin_folder() / name / f"{file}.py"
    spec = spec_from_file_location(f"structsam_plugins.{name}.{file}", path)
    if spec is None or spec.loader is None or not path.is_file():
        raise ArtifactError(f"{path} is missing. Install structsam-export again, or use --plugins none.")
    module = module_from_spec(spec)
    sys.modules[spec.name] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    return module


@cache
def function(op: str, opset: int) -> Any:
    """The ONNX local function (`onnx.FunctionProto`) of an operator, in operators of an opset."""
    import onnx.parser

    name = next(name for name, operator in PLUGINS.items() if operator == op)
    return onnx.parser.parse_function(part(name, "function").TEXT.format(opset=opset))


def add_functions(model: Any) -> None:
    """Give an `onnx.ModelProto` the functions of the fused operators in its graph, and no others of their domain."""
    import onnx

    used = {node.op_type for node in model.graph.node if node.domain == DOMAIN}
    others = [f for f in model.functions if f.domain != DOMAIN]
    opset = max(int(o.version) for o in model.opset_import if o.domain in ("", "ai.onnx"))
    functions = [function(op, opset) for op in PLUGINS.values() if op in used]
    del model.functions[:]
    model.functions.extend([*others, *functions])
    if used and not any(o.domain == DOMAIN for o in model.opset_import):
        model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, int(VERSION)))


@contextmanager
def without_functions(path: Path) -> Iterator[Path]:
    """A copy of an ONNX file with its functions inlined, for runtimes that read none; the file itself if it has none.

    Yields:
        Path of the copy, beside the file, as weights may be.
    """
    from structsam_export.files import disk_errors, temporary
    from structsam_export.graphs import load

    model = load(path) if path.suffix == ".onnx" else None
    if model is None or not model.functions:
        yield path
        return
    import onnx
    import onnx.inliner

    with temporary(path, ".onnx") as copy:
        with disk_errors(path.parent):
            onnx.save(onnx.inliner.inline_local_functions(model), str(copy))
        yield copy


def chosen(text: str) -> tuple[str, ...]:
    """Plugins by what a command was given: "none", "all" or a comma list of names.

    Raises:
        UsageError: an unknown name.
    """
    if text in ("none", ""):
        return ()
    if text == "all":
        return tuple(PLUGINS)
    names = [name.strip() for name in text.split(",")]
    for name in names:
        if name not in PLUGINS:
            raise UsageError(f"Unknown plugin '{name[:60]}'. Choose from: none, all, {', '.join(PLUGINS)}.")
    return tuple(name for name in PLUGINS if name in names)
