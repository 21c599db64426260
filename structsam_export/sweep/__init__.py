"""Many configurations on one data set: what each saves, what it costs in mIoU, and which one to take.

`run` is what the command calls: methods x rates x layers. `compare` takes any configurations. Images are the outer
loop: each is decoded once, the unpatched model runs once, and every configuration encodes it once.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.config import ExportConfig
from structsam_export.console import note, progress
from structsam_export.job import loaded_for, require_masks

if TYPE_CHECKING:
    from structsam_export.datasets import Sample
    from structsam_export.evaluate import Results
    from structsam_export.evaluate.store import Store
    from structsam_export.job import Job
    from structsam_export.models import LoadedModel

__all__ = ["compare", "run"]

SCHEMA = 1


def run(
    methods: str,
    rates: str,
    layers: str,
    dataset: str,
    *,
    model: str = "auto",
    checkpoint: str | None = None,
    preprocessing: str = "auto",
    **options: Any,
) -> dict[str, Any]:
    """Sweep over methods x rates x layers.

    Args:
        methods, rates, layers: see `grid.parse`.
        dataset: name or folder of a data set.
        model, checkpoint, preprocessing: as in `ExportConfig`.
        options: see `compare`.

    Returns:
        See `compare`.

    Raises:
        UsageError: unknown names, no rates, or nothing that can be tried; else see `compare`.
    """
    from structsam_export.sweep.grid import parse

    base = ExportConfig(model=model, checkpoint=checkpoint, preprocessing=preprocessing, precision="fp32")
    configs, notes = parse(methods, rates, layers).configs(base)
    return compare(configs, dataset, notes=notes, **options)


def compare(
    configs: Sequence[ExportConfig],
    dataset: str,
    *,
    root: Path | None = None,
    protocol: str = "sam",
    prompt: str = "box",
    limit: int | None = None,
    loss: float = 0.01,
    latency: bool = True,
    workers: int | None = None,
    output: Path | None = None,
    force: bool = False,
    skip_bad: bool = False,
    notes: Sequence[str] = (),
) -> dict[str, Any]:
    """Evaluate configurations of one model in PyTorch, beside the unpatched one.

    Args:
        configs: of the same model and checkpoint.
        dataset, root: name or folder of a data set, and where data sets are kept.
        protocol, prompt: see `evaluate.evaluate`.
        limit: only so many images of each part of the data set, spread evenly over it.
        loss: mIoU that the recommendation may lose, as a mean over the parts of the data set.
        latency: also time the encoders, see `latency`.
        workers: images worked on at once; None: see `parallel.workers_for`.
        output: folder of the results, where a stopped sweep continues; default evaluations/<dataset>-<model>-sweep.
        force, skip_bad: replace results of another evaluation in `output`; leave out images that cannot be read.
        notes: what was left out already.

    Returns:
        The report, also `report.json` in the folder: `dataset`, `model`, `sha256`, `protocol`, `prompt`, `limit`,
        `groups` (images and objects by part of the set), `notes`, `skipped`, `bootstrap`, `loss`, `latency`,
        `versions`, `rows` (`rows.rows_of`), `recommendation`, `cautious` (`choice.recommend`), `output`.

    Raises:
        UsageError, BadInputError, OutputError: see `evaluate.evaluate`, `Store` and `grid.jobs_of`.
        KeyboardInterrupt: with a message that says where finished images are.
    """
    from structsam_export.evaluate import check_names
    from structsam_export.evaluate.command import opened, tell
    from structsam_export.sweep.grid import jobs_of
    from structsam_export.sweep.parallel import predictors_of, workers_for
    from structsam_export.sweep.rows import report_of

    check_names(protocol, prompt)
    chosen, every = opened(dataset, root, None)
    samples, loaded = spread(every, limit), require_masks(loaded_for(configs[0]))
    jobs, more = jobs_of(configs, loaded)
    facts = {"dataset": chosen.name, "protocol": protocol, "prompt": prompt}
    store = store_of(facts, configs[0].model_name, loaded, output, force=force)
    names = {"protocol": protocol, "prompt": prompt}
    results = filled(samples, jobs, loaded, store, workers or workers_for(loaded, len(samples)), skip_bad, names)
    tell(results, store.folder)
    times = latencies(predictors_of(jobs, loaded), samples, results, store) if latency else None
    about = {"model": configs[0].model_name, "sha256": loaded.sha256, "limit": limit, "notes": [*notes, *more]}
    found = report_of(results, jobs, loaded.geometry, times, loss)
    report = {"schema": SCHEMA, **facts, **about, **found, "output": str(store.folder)}
    store.report(report)
    return report


def store_of(facts: dict[str, str], model: str, loaded: LoadedModel, output: Path | None, *, force: bool) -> Store:
    """The folder of a sweep's results, which takes further configurations of the same weights.

    Raises:
        UsageError, OutputError: see `Store`.
    """
    from structsam_export.evaluate.store import Store, default_folder

    options = {name: facts[name] for name in ("protocol", "prompt")}
    place = output or default_folder(facts["dataset"], model, "sweep", **options)
    return Store(place, {"sweep": True, **facts, "weights": loaded.weights}, force=force)


def spread(samples: Sequence[Sample], limit: int | None) -> list[Sample]:
    """At most `limit` samples of each group, evenly over the group's order; the same ones every time."""
    groups: dict[str, list[Sample]] = {}
    for sample in samples:
        groups.setdefault(sample.group, []).append(sample)
    chosen = [
        members
        if limit is None or len(members) <= limit
        else [members[i * len(members) // limit] for i in range(limit)]
        for members in groups.values()
    ]
    return [sample for members in chosen for sample in members]


def filled(
    samples: Sequence[Sample],
    jobs: Sequence[Job],
    loaded: LoadedModel,
    store: Store,
    workers: int,
    skip_bad: bool,
    names: dict[str, str],
) -> Results:
    """Every configuration on every image, with a progress bar.

    Raises:
        KeyboardInterrupt: says where finished images are.
    """
    from structsam_export.evaluate import evaluate
    from structsam_export.sweep.parallel import fill, predictors_of

    reused = None
    with store.kept(), progress() as bar:
        task = bar.add_task(f"{len(jobs) + 1} models", total=len(samples))

        def say(_: str) -> None:
            bar.advance(task)

        if workers > 1:
            reused = fill(samples, jobs, loaded, store, workers, skip_bad, names, say)
        shown = say if reused is None else None
        results = evaluate(samples, predictors_of(jobs, loaded), store=store, skip_bad=skip_bad, say=shown, **names)
    results.reused = results.reused if reused is None else reused
    return results


def latencies(predictors: Sequence[Any], samples: Sequence[Sample], results: Results, store: Store) -> dict[str, Any]:
    """`latency.measured` on the first image that could be used."""
    from structsam_export.runtime.images import prepare
    from structsam_export.sweep.latency import measured

    usable = {image["name"] for image in results.images}
    first = next(sample for sample in samples if sample.name in usable)
    ready = prepare(first.image(), predictors[0].size, predictors[0].preprocessing)
    return measured(predictors, ready.tensor, store)


def say_choice(report: dict[str, Any]) -> None:
    """The recommendation, and what was left out, on stderr."""
    from structsam_export.sweep.show import choice_lines

    for line in (*report["notes"], *choice_lines(report)):
        note(line)
