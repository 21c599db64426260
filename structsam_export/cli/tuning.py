"""`tune`: a rate and an MLP policy for every block."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from structsam_export.cli.options import Command, json_option, weights_options
from structsam_export.cli.show import check_file, check_picture, print_json, print_table


@click.command(cls=Command)
@weights_options
@click.option("--max-loss", type=click.FloatRange(0, 1), metavar="MIOU", help="mIoU that may be lost. Default: 0.01.")
@click.option("--target-macs", type=float, metavar="SHARE", help="Instead: MACs that may be left, as a share.")
@click.option("--target-latency", type=float, metavar="SHARE", help="Instead: latency that may be left, as a share.")
@click.option("--runner", metavar="NAME", help="The cost is latency on this (ort-cpu, openvino-f32, ...), not MACs.")
@click.option("--dataset", metavar="NAME|DIR", help="Images with true masks. Default: bundled.")
@click.option("--photos", type=click.Path(path_type=Path), metavar="DIR", help="Instead: photos without masks.")
@click.option("--root", type=click.Path(path_type=Path), metavar="DIR", help="Where data sets are kept.")
@click.option("--prompt", default="box", show_default=True, help="box or point, taken from the masks.")
@click.option("--methods", default="structsam:proportional,algm", show_default=True, help="METHOD[:VARIANT],...")
@click.option("--rates", default="0.25,0.5,0.75", show_default=True, help="Fractions of tokens to try in every block.")
@click.option("--mlps", default="merge,residual-consistency", show_default=True, help="MLP policies to try; or none.")
@click.option("--densities", default="0.25,0.5", show_default=True, help="Shares of residual consistency's tokens.")
@click.option("--limit", type=click.IntRange(2), metavar="N", help="Only N images of each set.")
@click.option("--minutes", type=click.FloatRange(0.1), help="Plan the work for so long. Default: 20, quick 5.")
@click.option("--quick", is_flag=True, help="The first method only, on fewer images.")
@click.option("--jobs", "workers", type=click.IntRange(1), help="Images at once. Default: one a core.")
@click.option("--output", type=click.Path(path_type=Path), help="Results folder. Default: evaluations/<set>-...-tune")
@click.option("--force", is_flag=True, help="Replace results that were made with other settings.")
@click.option("--plot", type=click.Path(path_type=Path), metavar="FILE", help="Draw a picture: .png, .svg or .pdf.")
@click.option("--page", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Also write a page.")
@json_option
def tune(
    max_loss: float | None,
    target_macs: float | None,
    target_latency: float | None,
    plot: Path | None,
    page: Path | None,
    as_json: bool,
    **given: Any,
) -> None:
    """Find the largest saving your images allow.

    A rate and an MLP policy for every block: tried one by one on half of the images, searched, and judged on the other
    half. Writes recipe.json, which 'export --recipe' takes. An interrupted run continues where it stopped.

    \b
    Example:
      structsam-export tune --max-loss 0.01 --plot tune.png
    """
    from structsam_export.tune import command, show

    if plot is not None:
        check_picture(plot)
    check_file(page, "--page")
    targets = (target_macs, target_latency)
    loss = 0.01 if max_loss is None and targets == (None, None) else max_loss
    menu = command.Menu(**{name: given.pop(name) for name in ("methods", "rates", "mlps", "densities", "quick")})
    report = command.run(command.Budget(loss, *targets), menu, given.pop("dataset"), given.pop("photos"), **given)
    if plot is not None:
        show.plot(report, plot)
    if page is not None:
        show.write_page(report, page)
    if as_json:
        print_json(report)
    else:
        print_table(*show.table(report))
    command.tell(report)
