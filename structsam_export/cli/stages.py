"""The pipeline: all of it, and each stage on an output folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from structsam_export.cli.options import (
    Command,
    build_options,
    config_of,
    folder_argument,
    image_option,
    json_option,
    model_options,
    plugins_option,
    refuse,
)
from structsam_export.cli.show import show_report
from structsam_export.console import echo


@click.command(cls=Command)
@model_options
@build_options
@image_option
@click.option("--recipe", type=click.Path(path_type=Path), metavar="FILE", help="Schedule found by 'tune'.")
@json_option
def export(output: Path | None, force: bool, as_json: bool, recipe: Path | None, **given: Any) -> None:
    """Run the whole chain.

    A checkpoint in, verified engines and a report out.

    \b
    Example:
      structsam-export export --model vit_b --checkpoint sam_vit_b_01ec64.pth --rate 0.5
    """
    from structsam_export.pipeline import export as run

    if recipe is not None:
        decided = ("method", "rate", "variant", "layers", "params", "mlp", "mlp_density")
        refuse(decided, f"{recipe} already says what is done in each block.")
    report, folder = run(config_of(given), output, force=force, recipe=recipe)
    show_report(report, folder, as_json)


@click.command(cls=Command)
@model_options
def trace(output: Path | None, force: bool, **given: Any) -> None:
    """Trace only.

    Stages patch and trace: ONNX as traced, in a new export folder.

    \b
    Example:
      structsam-export trace --method structsam --output engines/mine
    """
    from structsam_export.pipeline import trace_only

    echo(trace_only(config_of({**given, "backend": "none"}), output, force=force))


@click.command(cls=Command)
@folder_argument
@click.option("--verbose", is_flag=True, help="Also list near matches that were left alone, and why.")
def rewrite(folder: Path, verbose: bool) -> None:
    """Rewrite FOLDER's traced graphs.

    Stage rewrite only: the traced graphs of FOLDER into fast ones.

    \b
    Example:
      structsam-export rewrite engines/mine
    """
    from structsam_export.pipeline import rewrite_folder

    results = rewrite_folder(folder).manifest.results
    for part, counts in results.rewrite.items():
        nodes = results.graph[part]
        fired = ", ".join(f"{rule} {n}" for rule, n in counts.items())
        echo(f"{part}: {nodes['nodes_raw']} -> {nodes['nodes']} nodes ({fired})")
        for reason in results.rewrite_skipped[part] if verbose else ():
            echo(f"  left alone: {reason}")


@click.command(cls=Command)
@folder_argument
@build_options
@plugins_option
@click.option(
    "--plugin-library",
    type=click.Path(path_type=Path),
    help="Shared library with their TensorRT plugins; kept beside the engine under its hash.",
)
@click.option(
    "--plugin-kernels",
    type=click.Path(path_type=Path),
    help="Folder of the library's kernels (scripts/plugin_kernels).",
)
def build(
    folder: Path, backend: str, target: str, plugins: str, plugin_library: Path | None, plugin_kernels: Path | None
) -> None:
    """Build FOLDER's engines.

    Stage build only: engines of FOLDER's rewritten graphs.

    \b
    Example:
      structsam-export build engines/mine --backend tensorrt-rtx --target sm120
    """
    from structsam_export.pipeline import build_folder
    from structsam_export.plugin_builds import PluginBuild

    given = PluginBuild(library=plugin_library, kernels=plugin_kernels)
    for engine in build_folder(folder, backend, target, plugins, given).manifest.engines:
        echo(folder / engine.file)
