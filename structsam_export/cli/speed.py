"""How fast: `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from structsam_export.cli.options import Command, json_option
from structsam_export.cli.show import check_picture, print_json, print_table
from structsam_export.errors import UsageError


@click.command(cls=Command)
@click.argument("targets", nargs=-1, required=True, metavar="TARGET...")
@click.option(
    "--runner", "runners", multiple=True, default=("ort-cpu",), show_default=True, help="See below; repeatable."
)
@click.option(
    "--runs",
    "rounds",
    type=click.IntRange(1),
    default=7,
    show_default=True,
    help="Interleaved runs of each, after a warm-up.",
)
@click.option("--threads", type=click.IntRange(1), help="CPU threads, pinned. Default: all cores.")
@click.option("--baselines", is_flag=True, help="First: the stock encoder as torch.onnx exports it, and rewritten.")
@click.option("--profile", is_flag=True, help="Which operators take the time, and how much of it merging adds.")
@click.option("--reload/--keep", default=None, help="Hold one variant in memory at a time. Default: where not all fit.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw a picture: .png, .svg or .pdf.")
@json_option
def bench(
    targets: tuple[str, ...], runners: tuple[str, ...], baselines: bool, plot: Path | None, as_json: bool, **given: Any
) -> None:
    """Time encoders side by side.

    Targets are export folders or ONNX files, as PATH or NAME=PATH; ratios are to the first.

    Runners: eager; ort-cpu, ort-cuda, ort-tensorrt; openvino, openvino-f32, openvino-bf16, openvino-f16; tensorrt,
    tensorrt-rtx, tensorrt-rtx-graph (as one CUDA graph).

    \b
    Example:
      structsam-export bench engines/demo-structsam-r50-fp16 --baselines --profile --plot bench.png
    """
    from structsam_export.benchmark import bench as run
    from structsam_export.benchmark import table, variants_of
    from structsam_export.benchmark.baselines import baselines_of

    if plot is not None:
        check_picture(plot)
    if baselines and (other := next((r for r in runners if not r.startswith(("ort", "openvino"))), None)):
        raise UsageError(f"--baselines are ONNX files, and runner '{other}' takes none. Use --runner ort-cpu.")
    variants = variants_of(targets, runners)
    if baselines:  # an export: only after everything else that can be refused
        variants = variants_of([*baselines_of(targets[0]), *targets], runners)
    report = run(variants, **given)
    if plot is not None:
        from structsam_export.benchmark.plot import plot as draw

        draw(report, plot)
    if as_json:
        print_json(report)
        return
    print_table(*table(report))
