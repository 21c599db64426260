"""Engines with the fused operators of plugins/, to be measured beside those without.

They run where a library registers the operators' kernels (`--plugin-library`, `--plugin-kernels`; plugins/README.md
says how both are made). A dry run registers them in Python, which is enough to build an engine and no more.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Any

from gpu_suite import Options
from gpu_suite.exports import folder_of, forms

ENDING = "-plugins"  # of a form


def fused_form(method: str) -> str:
    """The form of a method with plugins: of what is measured without them."""
    return f"{forms(method)[-1]}{ENDING}"


def library(options: dict[str, Any]) -> dict[str, Any]:
    """What registers the operators in this run.

    Raises:
        ValueError: nothing does.
    """
    given = Options.from_dict(options)
    if given.dry_run:
        return {"registered": "in Python: engines are built and cannot run"}
    if not given.plugin_library:
        raise ValueError("no --plugin-library: plugins/README.md says how to build it on this machine")
    from gpu_suite.package import plugin_library

    kernels = Path(given.plugin_kernels) if given.plugin_kernels else None
    plugin_library.archive(Path(given.plugin_library), kernels, archive_of(given))
    return {"registered": Path(given.plugin_library).name}


def archive_of(options: Options) -> Path:
    """Where `library` packs the library and its kernels."""
    return Path(options.work) / "plugins.zip"


def fuse(options: dict[str, Any], model: str, method: str, precision: str) -> dict[str, Any]:
    """Put all plugins into an encoder; nodes before and after, and how often each was put in."""
    from gpu_suite.package import PLUGINS, apply_plugins

    given = Options.from_dict(options)
    folder = folder_of(given, model, method)
    source = folder / f"{forms(method)[-1]}.{precision}.onnx"
    made = apply_plugins(source, folder / f"{fused_form(method)}.{precision}.onnx", tuple(PLUGINS))
    return {"nodes_before": made.nodes_before, "nodes": made.nodes, "counts": made.counts}


def register(options: Options, backend: str) -> None:
    """Make the operators known to TensorRT, once for each process."""
    from gpu_suite.package import backend_of

    if options.dry_run:
        in_python(backend)
    else:
        backend_of(backend).load_plugins(archive_of(options))


@lru_cache(maxsize=1)
def in_python(backend: str) -> Any:
    """Creators written in Python; the registry does not keep them alive."""
    from gpu_suite.package import backend_of, plugin_part

    runtime: Any = backend_of(backend)
    return plugin_part("registration", "v3_python").register(runtime.module())
