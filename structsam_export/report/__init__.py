"""The report of a run: `report.json` with stable keys for scripts, `report.html` for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.artifact import Manifest, fp32_encoder
from structsam_export.macs import graph_macs, paper_macs, scheduled_macs
from structsam_export.report.tokens import prompt_report, token_counts

if TYPE_CHECKING:
    from structsam_export.geometry import EncoderGeometry
    from structsam_export.schedule import Schedule
    from structsam_export.validate.stages import Validation

SCHEMA = 1


def build_report(
    manifest: Manifest,
    geometry: EncoderGeometry,
    schedule: Schedule,
    found: Validation,
    folder: Path,
) -> dict[str, Any]:
    """Assemble `report.json`; keys are the contract of the README ("What the report looks like")."""
    config = manifest.config
    engines = [{**e, "executed": e["file"] in found.executed} for e in manifest.engines]
    return {
        "schema": SCHEMA,
        "passed": found.passed,
        "model": {**manifest.model, "name": config.model},
        "method": {
            "name": config.method,
            "variant": schedule.method.variant,
            "compat": config.compat,
            "params": {key: getattr(schedule.method, key) for key in getattr(schedule.method, "PARAMS", {})},
            "prompt_aware": config.prompt_aware,
            "source": schedule.method.SOURCE,
        },
        "rate": schedule.rate,
        "rates": {str(layer): rate for layer, rate in schedule.rates.items()},
        "layers": list(found.layers),
        "mlp": {"policy": config.mlp, "density": getattr(schedule.mlp, "density", None)},
        "tokens": token_counts(geometry, schedule),
        "macs": {
            "dense": paper_macs(geometry),
            "paper": scheduled_macs(geometry, schedule),
            "graph": graph_macs(fp32_encoder(folder)) // config.batch,
        },
        "rewrite": manifest.results.get("rewrite", {}),
        "precision": manifest.results.get("precision"),
        "graph": manifest.results.get("graph", {}),
        "parity": found.parity,
        "quality": found.quality,
        **({"prompt": prompt_report(found, geometry)} if config.prompt_aware else {}),
        "latency": found.latency,
        "engine": engine_summary(engines),
        "engines": engines,
        "photos": [{"name": p.name, "prompts": [q.name for q in p.prompts]} for p in found.photos],
        "config": config.to_dict(),
        "versions": manifest.versions,
    }


def engine_summary(engines: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The encoder engine that ran, or the first that was built; None if none was."""
    encoders = [e for e in engines if e["part"] == "encoder"]
    if not encoders:
        return None
    chosen = next((e for e in encoders if e["executed"]), encoders[0])
    return {key: chosen[key] for key in ("file", "backend", "version", "sm", "sha256", "bytes", "executed")}
