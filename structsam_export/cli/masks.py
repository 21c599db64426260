"""Masks of pictures: `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from structsam_export.cli.options import Command, folder_argument, json_option, options, refuse
from structsam_export.cli.show import print_json
from structsam_export.console import echo
from structsam_export.errors import UsageError

# Options of --everything -> parameters of `AutomaticMaskGenerator`.
PARAMETERS = {
    "points_per_side": "points_per_side",
    "min_iou": "pred_iou_thresh",
    "min_stability": "stability_score_thresh",
    "crop_layers": "crop_n_layers",
    "min_area": "min_mask_region_area",
}
everything_options = options(
    click.option("--everything", is_flag=True, help="All objects: a grid of points, as SAM's automatic masks."),
    click.option("--points-per-side", type=click.IntRange(1, 256), default=32, show_default=True, help="Of the grid."),
    click.option(
        "--min-iou", type=float, default=0.88, show_default=True, help="The model's own guess of a mask's IoU."
    ),
    click.option("--min-stability", type=float, default=0.95, show_default=True, help="Of masks to other thresholds."),
    click.option(
        "--crop-layers", type=click.IntRange(0, 4), default=0, show_default=True, help="Also crops: 2x2, 4x4."
    ),
    click.option(
        "--min-area", type=click.IntRange(0), default=0, show_default=True, help="Of holes and islands, in px."
    ),
)


@click.command(cls=Command)
@folder_argument
@click.argument("pictures", nargs=-1, required=True, metavar="IMAGE...", type=click.Path(path_type=Path))
@click.option("--point", "points", multiple=True, metavar="X,Y[,0|1]", help="1 (default): object, 0: background.")
@click.option("--box", "boxes", multiple=True, metavar="X0,Y0,X1,Y1", help="Each is an object; one goes with points.")
@click.option("--multimask", is_flag=True, help="SAM's three masks of each prompt instead of one.")
@everything_options
@click.option("--backend", default="auto", show_default=True, help="A backend, or eager; auto: see below.")
@click.option("--checkpoint", metavar="PATH", help="With --backend eager: where the weights are now.")
@click.option("--output", type=click.Path(path_type=Path), help="Folder. Default: predictions/<export>.")
@click.option("--force", is_flag=True, help="Replace earlier predictions.")
@json_option
def predict(
    folder: Path,
    pictures: tuple[Path, ...],
    points: tuple[str, ...],
    boxes: tuple[str, ...],
    multimask: bool,
    everything: bool,
    as_json: bool,
    **given: Any,
) -> None:
    """Draw masks of pictures with an export folder.

    Writes masks as PNG, a picture with all of them, and predictions.json with COCO's run lengths. All points are about
    one object, in every picture. --backend auto runs the folder's engines for this machine, else ONNX Runtime.

    \b
    Example:
      structsam-export predict engines/mine photo.jpg --point 320,240 --output masks
    """
    from structsam_export.predict import run
    from structsam_export.predict.asked import Asked

    parameters = {PARAMETERS[name]: given.pop(name) for name in PARAMETERS}
    if not everything:
        refuse(PARAMETERS, "Without --everything there is no grid.")
    elif not all(0 <= parameters[name] <= 1 for name in ("pred_iou_thresh", "stability_score_thresh")):
        raise UsageError("--min-iou and --min-stability are from 0 to 1.")
    asked = Asked.of_text(points, boxes, multimask=multimask, everything=parameters if everything else None)
    report, output = run(folder, pictures, asked, **given)
    if as_json:
        print_json(report)
        return
    for row in report["images"]:
        count = len(row["masks"])
        echo(f"{row['image']}: {count} mask{'' if count == 1 else 's'}, {output / row['overlay']}")
    echo(f"{output}: predictions.json, masks and overlays of {len(report['images'])} pictures")
