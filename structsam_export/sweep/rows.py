"""Results of a sweep as rows: one for the unpatched model and each configuration, by set and as a mean over sets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from structsam_export.evaluate.predictors import DENSE
from structsam_export.sweep.choice import front, recommend

if TYPE_CHECKING:
    from structsam_export.evaluate import Results
    from structsam_export.geometry import EncoderGeometry
    from structsam_export.job import Job


def report_of(
    results: Results, jobs: Sequence[Job], geometry: EncoderGeometry, times: dict[str, Any] | None, loss: float
) -> dict[str, Any]:
    """What a report says about results; see `compare`."""
    from structsam_export.environment import versions
    from structsam_export.evaluate.statistics import LEVEL, RESAMPLES, SEED, by_group

    groups = by_group(results.images)
    rows = rows_of(results.images, jobs, geometry, times)
    return {
        "groups": {
            group: {"images": len(members), "objects": sum(image["objects"] for image in members)}
            for group, members in groups.items()
        },
        "skipped": results.skipped,
        "bootstrap": {"level": LEVEL, "resamples": RESAMPLES, "seed": SEED},
        "loss": loss,
        "latency": {k: v for k, v in times.items() if k != "seconds"} if times else None,
        "versions": versions(),
        "rows": rows,
        "recommendation": recommend(rows, loss),
        "cautious": recommend(rows, loss, sure=True),
    }


def rows_of(
    images: Sequence[dict[str, Any]], jobs: Sequence[Job], geometry: EncoderGeometry, times: dict[str, Any] | None
) -> list[dict[str, Any]]:
    """One row a model.

    Returns:
        Rows with `name`, `method`, `variant`, `mlp`, `rate`, `layers`, `macs` (of an image, as the papers count),
        `macs_ratio`, `latency` (`p50` in ms and `ratio`, or None), `groups` and `mean` (intervals of
        `statistics.figures`, of each set and of the plain mean over sets) and `front`: for `macs` and `latency`,
        whether no other row has less of it and a smaller loss of mIoU (mean over sets).
    """
    from structsam_export.evaluate.statistics import by_group, figures
    from structsam_export.sweep.latency import ratios

    groups = by_group(images)
    each = {group: figures([members], DENSE) for group, members in groups.items()}
    # Of a single set, its own intervals: the same images drawn anew.
    mean = figures(list(groups.values()), DENSE) if len(groups) > 1 else next(iter(each.values()))
    speed = ratios(times["seconds"], DENSE) if times else {}
    rows = []
    for facts in (dense_facts(geometry), *(facts_of(job, geometry) for job in jobs)):
        name = facts["name"]
        found = {group: of[name] for group, of in each.items()}
        rows.append({**facts, "latency": speed.get(name), "groups": found, "mean": mean[name]})
    lost = [lost_of(row) for row in rows]
    by_macs = front([(row["macs"], value) for row, value in zip(rows, lost)])
    by_time = front([(row["latency"]["ratio"], v) for row, v in zip(rows, lost)]) if times else [None] * len(rows)
    return [{**row, "front": {"macs": m, "latency": t}} for row, m, t in zip(rows, by_macs, by_time)]


def lost_of(row: dict[str, Any], group: str | None = None) -> float:
    """mIoU a row loses against the unpatched model: of one set, or as the mean over sets."""
    found = (row["mean"] if group is None else row["groups"][group])["difference"]
    return -float(found["iou"]["mean"]) if found else 0.0


def dense_facts(geometry: EncoderGeometry) -> dict[str, Any]:
    """What is known of the unpatched model without running it."""
    from structsam_export.macs import paper_macs

    nothing = dict.fromkeys(("method", "variant", "mlp", "rate", "layers"))
    return {"name": DENSE, **nothing, "macs": paper_macs(geometry), "macs_ratio": 1.0}


def facts_of(job: Job, geometry: EncoderGeometry) -> dict[str, Any]:
    """What is known of a configuration without running it."""
    from structsam_export.macs import paper_macs, scheduled_macs

    config, schedule = job.config, job.schedule
    macs, dense = scheduled_macs(geometry, schedule), paper_macs(geometry)
    return {
        "name": job.label,
        "method": config.method,
        "variant": schedule.method.variant,
        "mlp": config.mlp,
        "rate": config.rate,
        "layers": config.layers,
        "macs": macs,
        "macs_ratio": macs / dense,
    }
