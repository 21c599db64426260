"""Fused operators in engines: put into the graph that is built, and counted in what was built."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from structsam_export.console import console
from structsam_export.errors import UsageError
from structsam_export.files import scratch
from structsam_export.fused import chosen

if TYPE_CHECKING:
    from structsam_export.backends.base import Engine
    from structsam_export.folder import ExportFolder


def plugins_for(folder: ExportFolder, text: str) -> tuple[str, ...]:
    """Plugins by what `build` was given (`fused.chosen`), for the graphs of a folder.

    Raises:
        UsageError: an unknown name, or graphs in a form that plugins are not put into.
    """
    names = chosen(text)
    if names and folder.config.form != "portable":
        raise UsageError(
            f"--plugins are put into portable graphs. {folder.path} was exported with --form {folder.config.form}."
        )
    return names


@contextmanager
def with_plugins(source: Path, part: str, plugins: Sequence[str]) -> Iterator[Path]:
    """A temporary copy of an encoder with fused operators; of anything else, the file itself."""
    from structsam_export.rewrite import apply_plugins

    if part != "encoder" or not plugins:
        yield source
        return
    with scratch("structsam-plugins-") as aside:
        made = apply_plugins(source, aside / source.name, plugins)
        counts = ", ".join(f"{name.rpartition('.')[2]} {count}" for name, count in made.counts.items())
        console().print(f"{made.nodes_before} -> {made.nodes} nodes ({counts})")
        yield aside / source.name


def tell_plugins(engine: Engine) -> None:
    """Say how many of the operators a plugin computes; elsewhere the runtime computes their functions."""
    layers = engine.options.get("plugin_layers", 0)
    how = f"{layers} layers are plugins" if layers else "no plugin is registered: it computes the operators' functions"
    console().print(f"{engine.file}: {how}")
