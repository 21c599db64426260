"""Fused operators in engines: put into the graph that is built, registered, and counted in what was built."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from structsam_export.backends import plugin_library
from structsam_export.console import console
from structsam_export.errors import UsageError
from structsam_export.files import scratch
from structsam_export.fused import chosen

if TYPE_CHECKING:
    from structsam_export.backends.base import Backend, Engine
    from structsam_export.folder import ExportFolder


@dataclass(frozen=True)
class PluginBuild:
    """What a build does about plugins.

    Args:
        names: fused operators to put into the encoder first, beside those that it has.
        library: shared library that registers plugins; None: those registered already, if any.
        kernels: folder of the library's kernels, as `scripts/plugin_kernels` wrote it.
    """

    names: tuple[str, ...] = ()
    library: Path | None = None
    kernels: Path | None = None

    def of(self, folder: ExportFolder, names: str, backend: Backend | None) -> PluginBuild:
        """The same for the graphs of a folder, with plugins by what `build` was given (`fused.chosen`).

        Raises:
            UsageError: an unknown name, graphs in a form that plugins are not put into, kernels without a library, or a
                library without a backend.
        """
        found = chosen(names)
        if found and folder.config.form != "portable":
            raise UsageError(
                f"--plugins are put into portable graphs. {folder.path} was exported with --form {folder.config.form}."
            )
        if self.kernels is not None and self.library is None:
            raise UsageError("--plugin-kernels belong to a --plugin-library. Pass that, too.")
        if self.library is not None and backend is None:
            raise UsageError("--plugin-library belongs to an engine. Pass a --backend that builds one.")
        return replace(self, names=found)

    @contextmanager
    def loaded(self, backend: Backend) -> Iterator[Path | None]:
        """The archive of library and kernels, loaded by the backend that builds; None without a library.

        Raises:
            UsageError: a backend without plugins.
            ArtifactError: no library, no kernels, or the backend refuses the library.
        """
        if self.library is None:
            yield None
            return
        with scratch("structsam-plugins-") as aside:
            plugin_library.archive(self.library, self.kernels, aside / "plugins.zip")
            backend.load_plugins(aside / "plugins.zip")
            yield aside / "plugins.zip"

    def noted(self, made: Engine, folder: Path, packed: Path | None) -> Engine:
        """An engine in a folder, with what was put into it, and the library beside it if it needs one."""
        import shutil

        options = dict(made.options)
        if self.names and made.part == "encoder":
            options["plugins"] = [*self.names]
        if packed is not None and self.library is not None and options.get("plugin_layers"):
            shutil.copyfile(packed, folder / plugin_library.BESIDE.format(name=made.file))
            options["plugin_library"] = self.library.name
        return replace(made, options=options)

    @contextmanager
    def in_graph(self, source: Path, part: str) -> Iterator[Path]:
        """A temporary copy of an encoder with fused operators; of anything else, the file itself."""
        from structsam_export.rewrite import apply_plugins

        if part != "encoder" or not self.names:
            yield source
            return
        with scratch("structsam-plugins-") as aside:
            made = apply_plugins(source, aside / source.name, self.names)
            counts = ", ".join(f"{name.rpartition('.')[2]} {count}" for name, count in made.counts.items())
            console().print(f"{made.nodes_before} -> {made.nodes} nodes ({counts})")
            yield aside / source.name


NONE = PluginBuild()


def tell_plugins(engine: Engine) -> None:
    """Say how many of the operators a plugin computes; elsewhere the runtime computes their functions."""
    layers = engine.options.get("plugin_layers", 0)
    how = f"{layers} layers are plugins" if layers else "no plugin is registered: it computes the operators' functions"
    console().print(f"{engine.file}: {how}")
