"""How good: `evaluate` one model, `sweep` over many."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Any

import click

from structsam_export.cli.options import (
    Command,
    config_of,
    json_option,
    merge_options,
    options,
    refuse,
    weights_options,
)
from structsam_export.cli.show import check_file, check_picture, print_json, print_table

dataset_options = options(
    click.option("--dataset", default="bundled", show_default=True, metavar="NAME|DIR", help="Images with true masks."),
    click.option("--root", type=click.Path(path_type=Path), metavar="DIR", help="Where data sets are kept."),
    click.option(
        "--protocol", default="sam", show_default=True, help="sam, or samhq (stretched images, as published)."
    ),
    click.option("--prompt", default="box", show_default=True, help="box or point, taken from the true masks."),
    click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be used, and list them."),
    click.option(
        "--output", type=click.Path(path_type=Path), help="Results folder. Default: evaluations/<dataset>-..."
    ),
    click.option("--force", is_flag=True, help="Replace results that were made with other settings."),
)
file_type = click.Path(dir_okay=False, path_type=Path)


@click.command(cls=Command)
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@dataset_options
@click.option("--runner", help="eager, ort, engine or a backend. Default: ort with FOLDER, else eager.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N images.")
@click.option("--spectral", is_flag=True, help="Instead: how far each method moves the token graph's spectrum.")
@click.option("--csv", type=file_type, metavar="FILE", help="Also write one line for each image and model.")
@merge_options
@json_option
def evaluate(
    folder: Path | None,
    dataset: str,
    root: Path | None,
    limit: int | None,
    spectral: bool,
    csv: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Compare masks with true ones.

    Prints mIoU, boundary IoU and Dice, and their differences to the unpatched model.
    FOLDER is an output folder, whose files are run (--checkpoint: where its weights are now); without it the options
    describe a model in PyTorch. An interrupted run continues where it stopped.

    \b
    Example:
      structsam-export evaluate --dataset coift --method structsam --rate 0.5
    """
    from structsam_export.evaluate import command
    from structsam_export.evaluate import spectral as spectra

    own = {name: given.pop(name) for name in ("runner", "protocol", "prompt", "skip_bad", "output", "force")}
    if folder is not None:
        refuse((name for name in given if name != "checkpoint"), f"{folder} already says what is evaluated.")
    where: dict[str, Any] = {"root": root, "limit": limit, "checkpoint": given["checkpoint"] if folder else None}
    config = None if folder else config_of(given)
    check_file(csv, "--csv")
    if spectral:
        refuse((*own, "csv"), "--spectral draws no masks.")
        report, table = command.spectral(config, folder, dataset, **where), spectra.table
    else:
        report, table = command.run(config, folder, dataset, **where, **own), command.table
    if csv is not None:
        command.write_csv(report, csv)
    if as_json:
        print_json(report)
        return
    print_table(*table(report))


@click.command(cls=Command)
@weights_options
@click.option("--methods", default="all", show_default=True, help="METHOD[:VARIANT][+MLP],...; METHOD: all variants.")
@click.option("--rates", default="0.25,0.5,0.7", show_default=True, help="Fractions of tokens removed.")
@click.option("--layers", default="all", show_default=True, help="Sets of blocks: all, last5, global, 0+3+6-8.")
@dataset_options
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only N images of each set, spread evenly.")
@click.option("--loss", type=click.FloatRange(0, 1), default=0.01, show_default=True, help="mIoU that may be lost.")
@click.option("--latency/--no-latency", default=True, show_default=True, help="Also time the encoders in PyTorch.")
@click.option(
    "--jobs", "workers", type=click.IntRange(1), help="Images at once. Default: one a core, if memory allows."
)
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw a picture: .png, .svg or .pdf.")
@click.option("--csv", type=file_type, metavar="FILE", help="Also write one line for each model and set.")
@click.option("--markdown", type=file_type, metavar="FILE", help="Also write a page: command, picture, table.")
@json_option
def sweep(plot: Path | None, csv: Path | None, markdown: Path | None, as_json: bool, **given: Any) -> None:
    """Compare methods, rates and layers.

    What each of methods x rates x layers saves, what it costs in mIoU, and which one to take.
    All run in PyTorch, on each image in turn; an interrupted sweep continues where it stopped. Latency is PyTorch's,
    too: 'bench' times what was exported.

    \b
    Example:
      structsam-export sweep --methods structsam,tome:alternate --rates 0.25,0.5 --plot sweep.png
    """
    from structsam_export import sweep as library
    from structsam_export.sweep import show

    if plot is not None:
        check_picture(plot)
    check_file(csv, "--csv")
    check_file(markdown, "--markdown")
    report = library.run(**given)
    if plot is not None:
        from structsam_export.sweep.plot import plot as draw

        draw(report, plot)
    if csv is not None:
        show.write_csv(report, csv)
    if markdown is not None:
        show.write_markdown(report, markdown, command_line(), plot)
    if as_json:
        print_json(report)
    else:
        print_table(*show.table(report))
    library.say_choice(report)


def command_line() -> str:
    """This command as it was typed."""
    return shlex.join(["structsam-export", *sys.argv[1:]])
