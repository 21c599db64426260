"""How good: `evaluate` one model, `sweep` over many."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from structsam_export.cli.options import config_of, json_option, merge_options, refuse
from structsam_export.cli.show import print_json, print_table
from structsam_export.errors import UsageError


@click.command()
@click.argument("folder", required=False, type=click.Path(path_type=Path))
@click.option("--dataset", default="bundled", show_default=True, metavar="NAME|DIR", help="Images with true masks.")
@click.option("--root", type=click.Path(path_type=Path), metavar="DIR", help="Where data sets are kept.")
@click.option("--runner", help="eager, ort or engine. Default: ort with FOLDER, else eager.")
@click.option("--protocol", default="sam", show_default=True, help="sam, or samhq (stretched images, as published).")
@click.option("--prompt", default="box", show_default=True, help="box or point, taken from the true masks.")
@click.option("--limit", type=click.IntRange(1), metavar="N", help="Only the first N images.")
@click.option("--skip-bad", is_flag=True, help="Leave out images that cannot be read, and list them.")
@click.option("--spectral", is_flag=True, help="Instead: how far each method moves the token graph's spectrum.")
@click.option("--output", type=click.Path(path_type=Path), help="Results folder. Default: evaluations/<dataset>-...")
@click.option("--force", is_flag=True, help="Replace results that were made with other settings.")
@click.option(
    "--csv",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Also write one line for each image and model.",
)
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
    """Compare masks with true ones: mIoU, boundary IoU, Dice, and their differences to the unpatched model.

    FOLDER is an output folder, whose files are run; without it the options describe a model in PyTorch. An interrupted
    run continues where it stopped.

    \b
    Example:
      structsam-export evaluate --dataset coift --method structsam --rate 0.5
    """
    from structsam_export.evaluate import command
    from structsam_export.evaluate import spectral as spectra

    own = {name: given.pop(name) for name in ("runner", "protocol", "prompt", "skip_bad", "output", "force")}
    if folder is not None:
        refuse(given, f"{folder} already says what is evaluated.")
    config = None if folder else config_of(given)
    if csv is not None and not csv.absolute().parent.is_dir():
        raise UsageError(f"Folder {csv.absolute().parent} does not exist. Make it, or pass another --csv.")
    if spectral:
        refuse((*own, "csv"), "--spectral draws no masks.")
        report, table = command.spectral(config, folder, dataset, root=root, limit=limit), spectra.table
    else:
        report, table = command.run(config, folder, dataset, root=root, limit=limit, **own), command.table
    if csv is not None:
        command.write_csv(report, csv)
    if as_json:
        print_json(report)
        return
    print_table(*table(report))
