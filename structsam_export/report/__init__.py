"""The report of a run: `report.json` with stable keys for scripts, `report.html` for people."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.artifact import Manifest
from structsam_export.macs import graph_macs, paper_macs

if TYPE_CHECKING:
    from structsam_export.methods import Method
    from structsam_export.models.geometry import EncoderGeometry
    from structsam_export.validate.parity import Validation

SCHEMA = 1


def build_report(
    manifest: Manifest,
    geometry: EncoderGeometry,
    method: Method,
    layers: Sequence[int],
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
        "method": {"name": config.method, "variant": method.variant},
        "rate": method.rate,
        "layers": list(found.layers),
        "tokens": token_counts(geometry, method, layers),
        "macs": {
            "dense": paper_macs(geometry),
            "paper": paper_macs(geometry, method, layers),
            "graph": graph_macs(folder / "encoder.onnx") // config.batch,
        },
        "rewrite": manifest.results.get("rewrite", {}),
        "graph": manifest.results.get("graph", {}),
        "parity": found.parity,
        "quality": found.quality,
        "latency": found.latency,
        "engine": engine_summary(engines),
        "engines": engines,
        "photos": [{"name": p.name, "prompts": [q.name for q in p.prompts]} for p in found.photos],
        "config": config.to_dict(),
        "versions": manifest.versions,
    }


def token_counts(geometry: EncoderGeometry, method: Method, layers: Sequence[int]) -> dict[str, Any]:
    """N and n of one attention call in global and in windowed layers, and the rate that really results."""
    counts: dict[str, Any] = {}
    for kind in ("global", "window"):
        of_kind = [i for i, w in enumerate(geometry.windows) if (w == 0) == (kind == "global")]
        if not of_kind:
            counts[kind] = None
            continue
        layout = geometry.layout(of_kind[0])
        removed = method.removed(layout) if set(of_kind) & set(layers) else 0
        total = layout.tokens
        counts[kind] = {"N": total, "n": total - removed, "effective_rate": round(removed / total, 6)}
    return counts


def engine_summary(engines: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The encoder engine that ran, or the first that was built; None if none was."""
    encoders = [e for e in engines if e["part"] == "encoder"]
    if not encoders:
        return None
    chosen = next((e for e in encoders if e["executed"]), encoders[0])
    return {key: chosen[key] for key in ("file", "backend", "version", "sm", "sha256", "bytes", "executed")}
