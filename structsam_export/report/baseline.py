"""A report against a stored one: which numbers became worse by more than they may (`docs/ci.md` has the table)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structsam_export.config import read_json
from structsam_export.errors import ArtifactError, shortened
from structsam_export.report import SCHEMA
from structsam_export.schema import Misfit, check, require

# By how much each number of a stage may be worse, by the precision whose gates the stage has. Another CPU, or another
# version of a runtime, orders sums differently: that moves numbers by less.
PARITY = {
    "fp32": {"max_rel": 1e-5, "mask_iou_mean": 1e-4, "mask_iou_min": 0.005, "decision_agreement": 0.001},
    "fp16": {"max_rel": 0.002, "mask_iou_mean": 5e-4, "mask_iou_min": 0.003, "decision_agreement": 0.001},
    "bf16": {"max_rel": 0.02, "mask_iou_mean": 0.002, "mask_iou_min": 0.02, "decision_agreement": 0.01},
}
QUALITY = {"miou_vs_dense": 0.002, "miou_true_patched": 0.002}
# In place of masks, of models that draw none.
TOP1 = {"fp32": 0.0, "fp16": 0.01, "bf16": 0.05}
FEATURES = {"embedding_cosine_vs_dense": 0.002, "top1_vs_dense": 0.0}
# Shares of the stored value. Exporters of another version name a few nodes more; a rule that no longer fires, dozens.
NODES, MACS = 0.01, 0.001
LARGER_IS_WORSE = ("max_rel", "nodes", "macs", "time")

NUMBER = (float, None)
STAGE = {
    **dict.fromkeys((*PARITY["fp32"], "top1_agreement"), NUMBER),
    "against": str,
    "passed": bool,
    "gates": {str: float},
}
JUDGED = ("mask_iou_mean", "mask_iou_min", "top1_agreement")  # each only where the stage has a gate for it
FORM: dict[Any, Any] = {
    "schema": int,
    "passed": bool,
    "parity": {str: STAGE},
    "quality": dict.fromkeys((*QUALITY, *FEATURES), NUMBER),
    "graph": {str: {str: int}},
    "macs": {"graph": int},
    "latency": {str: {"p50": float, "interleaved": bool}},
    "model": {"sha256": str, "name": str},
    "config": dict,
    "photos": [{"name": str, "prompts": [str]}],
}
# What makes two exports the same one; where files are and who builds them does not.
OPTIONS = (
    *("preprocessing", "method", "rate", "variant", "layers", "compat", "prompt_aware", "params", "mlp", "mlp_density"),
    *("precision", "form", "plugins", "opset", "batch"),
)


@dataclass(frozen=True)
class Check:
    """One number of a report, against the stored one.

    Args:
        stage: what it is of: "onnx", "quality", "encoder", ...
        metric: its key in `report.json`; "gates": whether the stage's own gates hold; "run": whether it was compared.
        now, then: this run's and the stored value; None where a run has none.
        limit: the worst value that passes; None for what is told, not judged.
        passed: whether it holds.
    """

    stage: str
    metric: str
    now: float | None
    then: float | None = None
    limit: float | None = None
    passed: bool = True

    def __str__(self) -> str:
        if self.metric == "gates":
            return f"{self.stage}: {'its gates hold' if self.passed else 'a gate does not hold'}"
        if self.metric == "run":
            return f"{self.stage}: compared for the baseline, not in this run"
        now, then = shown(self.now), shown(self.then)
        allowed = "" if self.limit is None else f" (allowed: {shown(self.limit)})"
        return f"{self.stage} {self.metric}: {now} now, {then} in the baseline{allowed}"


def shown(value: float | None) -> str:
    """A number for people, exact enough to tell two that differ by less than they may."""
    return "none" if value is None else str(value) if isinstance(value, int) else f"{value:.7g}"


@dataclass(frozen=True)
class Verdict:
    """All checks of a run, its own gates first."""

    checks: tuple[Check, ...]
    baseline: Path | None = None

    @property
    def worse(self) -> list[Check]:
        """What became worse than the baseline allows; gates are not among them."""
        return [c for c in self.checks if not c.passed and c.metric != "gates"]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return {"file": str(self.baseline), "passed": not self.worse, "checks": [vars(c) for c in self.checks]}


def read_baseline(path: Path) -> dict[str, Any]:
    """A stored report.

    Raises:
        ArtifactError: missing, damaged, no report, another version's, or of an export that failed itself.
    """
    again = "Make it anew: structsam-export validate DIR --baseline FILE --update-baseline"
    try:
        data = read_json(path)
    except ArtifactError as error:
        reason = str(error).split(". ")[0] if path.exists() else f"Baseline {shortened(path)} does not exist"
        raise ArtifactError(f"{reason}. {again}") from None
    try:
        require(data, ("schema", "passed", "parity"), "the baseline")
        check(data["schema"], int, "schema")
        if data["schema"] != SCHEMA:
            raise Misfit(f"it has schema {data['schema']}, this version writes {SCHEMA}")
        require(data, FORM, "the baseline")
        check(data, FORM, "baseline")
        require(data["macs"], ("graph",), "baseline.macs")
        for name, row in data["parity"].items():
            where = f"baseline.parity.{shortened(name)}"
            require(row, [key for key in STAGE if key not in JUDGED], where)
            require(row, [key for key in JUDGED if key in row["gates"]], where)
        for photo in data["photos"]:
            require(photo, ("name", "prompts"), "baseline.photos")
        require(data["model"], ("sha256",), "baseline.model")
    except Misfit as error:
        raise ArtifactError(f"{path} is no baseline for this version: {error}. {again}") from None
    if not data["passed"]:
        raise ArtifactError(f"{path} is the report of an export that did not pass itself. {again}")
    found: dict[str, Any] = data
    return found


def check_replaceable(path: Path) -> None:
    """Refuse to replace a file that is no report, of whatever version: a mistyped path must not cost a photo.

    Raises:
        ArtifactError: another file.
    """
    if not path.exists():
        return
    try:
        data = read_json(path)
    except ArtifactError:
        data = None
    if not isinstance(data, dict) or not {"schema", "parity"} <= set(data):
        raise ArtifactError(f"{path} is no report, and is not replaced. Delete it first, or pass another --baseline.")


def check_same(sha256: str, config: dict[str, Any], baseline: dict[str, Any], path: Path) -> None:
    """Refuse to compare different exports.

    Args:
        sha256: of the weights.
        config: of the export, as plain values.
        baseline: the stored report.
        path: its file.

    Raises:
        ArtifactError: names the first difference in weights or options.
    """
    pairs: dict[str, tuple[Any, Any]] = {"weights": (sha256[:12], baseline["model"]["sha256"][:12])}
    pairs |= {name: (config.get(name), baseline["config"].get(name)) for name in OPTIONS}
    for name, (now, then) in pairs.items():
        if plain(now) != plain(then):
            raise another(path, f"{name.replace('_', '-')}: {shortened(then)} there, {shortened(now)} here")


def check_photos(report: dict[str, Any], baseline: dict[str, Any], path: Path) -> None:
    """Refuse to compare numbers of other photos or prompts.

    Raises:
        ArtifactError: their names differ.
    """
    if report["photos"] != baseline["photos"]:
        now, then = (", ".join(photo["name"] for photo in found["photos"]) for found in (report, baseline))
        raise another(path, f"photos or prompts: {shortened(then)} there, {shortened(now)} here")


def another(path: Path, difference: str) -> ArtifactError:
    """The error for a baseline of something else."""
    return ArtifactError(
        f"{path} is the baseline of another export ({difference}). Pass that export's own baseline, or store this one "
        "with --update-baseline."
    )


def plain(value: Any) -> Any:
    """A value as JSON gives it back: no tuples."""
    return [plain(v) for v in value] if isinstance(value, (list, tuple)) else value


def judge(
    report: dict[str, Any],
    baseline: dict[str, Any] | None = None,
    path: Path | None = None,
    slowdown: float | None = None,
) -> Verdict:
    """Gates of a report and, with a baseline, what became worse.

    Args:
        report: of this run.
        baseline: the stored one, as `read_baseline` gives it; None: the gates alone.
        path: its file.
        slowdown: factor by which an encoder's time, over the unpatched model's in the same run, may grow; None: any.
    """
    checks = [Check(name, "gates", None, passed=row["passed"]) for name, row in report["parity"].items()]
    if baseline is not None:
        for found in (parity(report, baseline), quality(report, baseline), sizes(report, baseline)):
            checks += found
        checks += times(report, baseline, slowdown)
    return Verdict(tuple(checks), path)


def parity(report: dict[str, Any], baseline: dict[str, Any]) -> Iterator[Check]:
    """Every stage of the baseline."""
    for name, then in baseline["parity"].items():
        now = report["parity"].get(name)
        if now is None:
            yield Check(name, "run", None, passed=False)
            continue
        precision = precision_of(now)
        for metric, allowed in {**PARITY[precision], "top1_agreement": TOP1[precision]}.items():
            if metric in now or metric in then:
                yield compared(name, metric, now.get(metric), then.get(metric), allowed)


def precision_of(row: dict[str, Any]) -> str:
    """The precision whose gates a stage has; the strictest where none has these."""
    from structsam_export.validate.parity import GATES, gates_of

    return next((name for name in GATES if gates_of(name, row) == dict(row["gates"])), "fp32")


def quality(report: dict[str, Any], baseline: dict[str, Any]) -> Iterator[Check]:
    """What merging costs."""
    for metric, allowed in (QUALITY if "miou_vs_dense" in report["quality"] else FEATURES).items():
        yield compared("quality", metric, report["quality"].get(metric), baseline["quality"].get(metric), allowed)


def sizes(report: dict[str, Any], baseline: dict[str, Any]) -> Iterator[Check]:
    """Nodes of both graphs, multiply-adds of the encoder."""
    for part, then in baseline["graph"].items():
        if "nodes" in then:
            now = report["graph"].get(part, {}).get("nodes")
            yield compared(part, "nodes", now, then["nodes"], int(NODES * then["nodes"]))
    macs = baseline["macs"]["graph"]
    yield compared("encoder", "macs", report["macs"]["graph"], macs, int(MACS * macs))


def times(report: dict[str, Any], baseline: dict[str, Any], slowdown: float | None) -> Iterator[Check]:
    """Times of encoders, as ratios to the unpatched model's in the same run: machines differ, ratios hardly."""
    for name in baseline["latency"]:
        now, then = ratio(report["latency"], name), ratio(baseline["latency"], name)
        if name == "dense" or now is None or then is None:
            continue
        limit = None if slowdown is None else slowdown * then
        yield Check(name, "time", now, then, limit, limit is None or now <= limit)


def ratio(latency: dict[str, Any], name: str) -> float | None:
    """Median time of an encoder over that of the unpatched model, where both took turns."""
    rows = latency.get("dense", {}), latency.get(name, {})
    if not all(row.get("interleaved") and row.get("p50") for row in rows):
        return None
    return float(rows[1]["p50"] / rows[0]["p50"])


def compared(stage: str, metric: str, now: float | None, then: float | None, allowed: float) -> Check:
    """One number; where the baseline has none, it is told only, and where this run has none, it fails."""
    if then is None:
        return Check(stage, metric, now)
    more = metric in LARGER_IS_WORSE
    limit = then + allowed if more else then - allowed
    passed = now is not None and (now <= limit if more else now >= limit)
    return Check(stage, metric, now, then, limit, passed)
