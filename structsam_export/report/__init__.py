"""The report of a run: `report.json` with stable keys for scripts, `report.html` for people."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from structsam_export.macs import graph_macs, paper_macs, scheduled_macs
from structsam_export.report.tokens import prompt_report, token_counts

if TYPE_CHECKING:
    from structsam_export.backends.base import Engine
    from structsam_export.folder import ExportFolder
    from structsam_export.job import Job
    from structsam_export.validate.parity import Validation

SCHEMA = 1


def build_report(job: Job, folder: ExportFolder, found: Validation) -> dict[str, Any]:
    """Assemble `report.json`; keys are the contract of the README ("What the report looks like")."""
    manifest, config, geometry = folder.manifest, folder.config, job.loaded.geometry
    schedule, method, results = job.schedule, job.schedule.method, folder.manifest.results
    engines = [{**e.to_dict(), "executed": e.file in found.executed} for e in manifest.engines]
    photos = found.reference.inputs.photos
    return {
        "schema": SCHEMA,
        "passed": found.passed,
        "model": {**manifest.model, "name": config.model_name},
        "method": {
            "name": config.method,
            "variant": method.variant,
            "compat": config.compat,
            "params": {key: getattr(method, key) for key in method.PARAMS},
            "prompt_aware": config.prompt_aware,
            "source": method.SOURCE,
        },
        "rate": schedule.rate,
        "rates": {str(layer): rate for layer, rate in schedule.rates.items()},
        "layers": list(found.reference.layers),
        "mlp": {"policy": config.mlp, "density": getattr(schedule.mlp, "density", None)},
        "tokens": token_counts(geometry, schedule),
        "macs": {
            "dense": paper_macs(geometry),
            "paper": scheduled_macs(geometry, schedule),
            "graph": graph_macs(folder.fp32_encoder()) // config.batch,
        },
        "rewrite": results.rewrite,
        "precision": results.precision,
        "graph": results.graph,
        "parity": {name: row.to_dict() for name, row in found.parity.items()},
        "quality": dict(found.quality),
        **({"prompt": prompt_report(found.reference, geometry)} if config.prompt_aware else {}),
        "latency": dict(found.latency),
        "engine": engine_summary(manifest.engines, found.executed),
        "engines": engines,
        "photos": [{"name": p.name, "prompts": [q.name for q in p.prompts]} for p in photos],
        "config": config.to_dict(),
        "versions": manifest.versions,
    }


def engine_summary(engines: Sequence[Engine], executed: Sequence[str]) -> dict[str, Any] | None:
    """The encoder engine that ran, or the first that was built; None if none was."""
    encoders = [e for e in engines if e.part == "encoder"]
    if not encoders:
        return None
    chosen = next((e for e in encoders if e.file in executed), encoders[0])
    values = chosen.to_dict() | {"executed": chosen.file in executed}
    return {key: values[key] for key in ("file", "backend", "version", "sm", "sha256", "bytes", "executed")}
