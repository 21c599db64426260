"""The command `evaluate`: a model or an output folder, a data set, a table; and its parts for other commands."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.config import ExportConfig
from structsam_export.console import note, progress
from structsam_export.errors import BadInputError, UsageError
from structsam_export.evaluate.metrics import METRICS
from structsam_export.files import atomic
from structsam_export.folder import ExportFolder

if TYPE_CHECKING:
    from structsam_export.datasets import Dataset
    from structsam_export.evaluate import Results
    from structsam_export.evaluate.predictors import Predictor
    from structsam_export.evaluate.store import Store
    from structsam_export.job import Job

SCHEMA = 1
NOTES = 20  # of a data set, shown


def run(
    config: ExportConfig | None,
    folder: Path | None,
    dataset: str,
    *,
    checkpoint: str | None = None,
    root: Path | None = None,
    runner: str | None = None,
    protocol: str = "sam",
    prompt: str = "box",
    output: Path | None = None,
    limit: int | None = None,
    force: bool = False,
    skip_bad: bool = False,
) -> dict[str, Any]:
    """Evaluate a model, or the files of an output folder, and the unpatched model beside it.

    Args:
        config, folder: the model in PyTorch, or an export folder; the other one is None.
        dataset, root: name or folder of a data set, and where data sets are kept; None: their default place.
        checkpoint: where the weights of `folder` are now; None: where they were when it was exported.
        runner: one of `predictors.RUNNERS`; None: ort with a folder, else eager.
        protocol, prompt: see `evaluate`.
        output: folder of the results; default evaluations/<dataset>-<model>-<method>-...
        limit: only the first images.
        force: replace results of another evaluation in `output`.
        skip_bad: leave out images that cannot be read.

    Returns:
        The report, which is also `report.json` in the folder: `dataset`, `protocol`, `prompt`, `runner`, `images`,
        `objects`, `skipped`, `bootstrap`, `rows` (`statistics.summary`), `per_image` (`Results.images`), `output`.

    Raises:
        UsageError, BadInputError, MissingRuntimeError, OutputError: see `evaluate`, `Store` and `predictors`.
        KeyboardInterrupt: with a message that says where finished images are.
    """
    from structsam_export.evaluate import check_names
    from structsam_export.evaluate.predictors import check_runner, eager_predictors, exported_predictor
    from structsam_export.evaluate.store import Store, default_folder

    runner = runner or ("ort" if folder else "eager")
    check_names(protocol, prompt)
    check_runner(runner)
    if folder is None and runner != "eager":
        how = "Export first, then pass the output folder: structsam-export evaluate FOLDER --dataset ..."
        raise UsageError(f"--runner {runner} evaluates exported files. {how}")
    chosen, samples = opened(dataset, root, limit)
    job, exported = job_of(config, folder, checkpoint)
    with ExitStack() as active:
        predictors = eager_predictors(job)
        if exported is not None and runner != "eager":
            predictors = [predictors[0], active.enter_context(exported_predictor(job, exported, runner))]
        facts = {"dataset": chosen.name, "protocol": protocol, "prompt": prompt}
        place = output or default_folder(chosen.name, job.name, runner=runner, protocol=protocol, prompt=prompt)
        store = Store(place, {**facts, "models": {p.name: p.identity for p in predictors}}, force=force)
        results = watched(samples, predictors, store, protocol=protocol, prompt=prompt, skip_bad=skip_bad)
    tell(results, place)
    report = {"schema": SCHEMA, **facts, "runner": runner, **figures_of(results), "output": str(place)}
    store.report(report)
    return report


def figures_of(results: Results) -> dict[str, Any]:
    """What a report says of results, whatever they are of."""
    from structsam_export.evaluate.predictors import DENSE
    from structsam_export.evaluate.statistics import LEVEL, RESAMPLES, SEED, summary

    return {
        "images": len(results.images),
        "objects": results.objects,
        "skipped": results.skipped,
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "rows": summary(results.images, DENSE),
        "per_image": results.images,
    }


def watched(samples: Sequence[Any], predictors: Sequence[Predictor], store: Store, **options: Any) -> Results:
    """`evaluate` with a progress bar, and with a message where it is interrupted.

    Raises:
        KeyboardInterrupt: says where finished images are.
    """
    from structsam_export.evaluate import evaluate

    with store.kept(), progress() as bar:
        task = bar.add_task("evaluate", total=len(samples))
        return evaluate(samples, predictors, store=store, say=lambda _: bar.advance(task), **options)


def spectral(
    config: ExportConfig | None,
    folder: Path | None,
    dataset: str,
    *,
    checkpoint: str | None = None,
    root: Path | None = None,
    limit: int | None = None,
) -> dict[str, Any]:
    """Spectral distances of a configuration's method, and of the others at its rate; see the module `spectral`.

    Returns:
        `dataset`, `images`, `rate`, `layers`, `left_out` (blocks with too many tokens), `rows` (one a method).

    Raises:
        UsageError: the method does not merge, or has several rates.
    """
    from structsam_export.console import stage
    from structsam_export.evaluate.spectral import IMAGES, LARGEST, compare, methods_at

    chosen, samples = opened(dataset, root, limit or IMAGES)
    job, _ = job_of(config, folder, checkpoint)
    methods, layers = methods_at(job), sorted(job.schedule.blocks)
    with stage(f"spectra, {len(samples)} images") as say:
        rows = compare(job.loaded, methods, layers, [sample.image() for sample in samples], say)
    left_out = [i for i in layers if job.loaded.geometry.window_grid(i).tokens > LARGEST]
    if left_out:
        note(f"Blocks {left_out} left out: more than {LARGEST} tokens in an attention call.")
    facts = {"dataset": chosen.name, "images": len(samples), "rate": job.schedule.rate}
    return {"schema": SCHEMA, **facts, "layers": layers, "left_out": left_out, "rows": rows}


def opened(dataset: str, root: Path | None, limit: int | None) -> tuple[Dataset, list[Any]]:
    """A data set and its first samples.

    Raises:
        BadInputError: it has no images.
    """
    from structsam_export.datasets import open_dataset

    found = open_dataset(dataset, root)
    samples = list(found.samples())[:limit]
    for line in (*found.notes[:NOTES], *([f"... and {len(found.notes) - NOTES} more"] if found.notes[NOTES:] else [])):
        note(line)
    if not samples:
        raise BadInputError(f"Data set {dataset} has no images. Check the folder, or pass another --dataset.")
    return found, samples


def job_of(config: ExportConfig | None, folder: Path | None, checkpoint: str | None) -> tuple[Job, ExportFolder | None]:
    """The model of a configuration or of an output folder.

    Raises:
        ArtifactError: the checkpoint is not the one that was exported.
        UsageError: the model draws no masks.
    """
    from structsam_export.job import Job, require_masks

    if folder is None:
        assert config is not None
        job = Job.prepare(replace(config, precision="fp32"))
        require_masks(job.loaded)
        return job, None
    exported = ExportFolder.read(folder)
    exported.require("decoder")
    return Job.of_folder(exported, checkpoint), exported


def tell(results: Results, place: Path) -> None:
    """Say on stderr what the table does not."""
    lines = [f"{results.reused} images taken from {place}"] if results.reused else []
    for line in (*lines, *(f"skipped {bad['name']}: {bad['why']}" for bad in results.skipped)):
        note(line)


def table(report: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A report as the head and the rows of a table for people."""
    head = ("model", "mIoU", "boundary IoU", "Dice", "mIoU - dense", "boundary IoU - dense", "box filled")
    grouped = len({row["group"] for row in report["rows"]}) > 1
    rows = []
    for row in report["rows"]:
        paired = row["difference"]
        differences = [spread(paired[m], "+") if paired else "-" for m in ("iou", "boundary_iou")]
        group = (f"{row['group']} ({row['images']})",) if grouped else ()
        figures = [spread(row["iou"]), spread(row["boundary_iou"]), decimals(row["dice"]["mean"])]
        rows.append((*group, row["name"], *figures, *differences, decimals(row["box_filled"]["mean"])))
    return (("set (images)", *head) if grouped else head), rows


def spread(value: dict[str, Any], sign: str = "") -> str:
    """An interval as text: mean [low, high]; the mean alone where there is no interval."""
    if value["low"] is None:
        return decimals(value["mean"], sign)
    mean, low, high = (decimals(value[k], sign) for k in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def decimals(value: float, sign: str = "") -> str:
    """A number as text, without the zero before the point, as papers print it."""
    return format(value, f"{sign}.4f").replace("0.", ".", 1)


def write_csv(report: dict[str, Any], path: Path) -> None:
    """One line for each image and model: image, model, objects, the metrics, box_filled.

    Raises:
        OutputError: it cannot be written.
    """
    with atomic(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow(["image", "model", "objects", *METRICS, "box_filled"])
        for image in report["per_image"]:
            for name, found in image["scores"].items():
                figures = [repr(found[m]) for m in METRICS]
                lines.writerow([image["name"], name, image["objects"], *figures, repr(image["box_filled"])])
