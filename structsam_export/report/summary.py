"""A run as Markdown for a job's page (GITHUB_STEP_SUMMARY)."""

from __future__ import annotations

import html
from pathlib import Path
from typing import Any

from structsam_export.files import disk_errors
from structsam_export.report.baseline import Check, Verdict, ratio, shown

# What stages are judged by beside their numbers: masks, or the best class.
JUDGED = {"mask_iou_mean": "mask IoU, mean", "mask_iou_min": "mask IoU, worst", "top1_agreement": "same best class"}


def quality_line(quality: dict[str, Any]) -> str:
    """The patched model against the unpatched one, in a line."""
    if "miou_vs_dense" in quality:
        return f"masks against the unpatched model: IoU {quality['miou_vs_dense']:.4f}"
    best = f", the same best class in {quality['top1_vs_dense']:.0%}" if "top1_vs_dense" in quality else ""
    return f"features against the unpatched model: cosine {quality['embedding_cosine_vs_dense']:.4f}{best}"


def summary(report: dict[str, Any], verdict: Verdict, name: str) -> str:
    """The verdict, what became worse, and tables of parity, sizes and times.

    Args:
        report: of this run.
        verdict: of its checks.
        name: of the export.
    """
    passed, worse = report["passed"], verdict.worse
    said = "passed" if passed and not worse else "failed"
    lines = [f"## {'✅' if said == 'passed' else '❌'} {cell(name)}: {said}", ""]
    for check in [c for c in verdict.checks if not c.passed]:
        lines.append(f"- **{cell(str(check))}**")
    if verdict.baseline is not None and not worse:
        lines.append(f"Nothing is worse than the baseline {cell(verdict.baseline.name)} by more than it may.")
    lines += ["", *parity_table(report, verdict), *other_table(report, verdict)]
    times = {n: ratio(report["latency"], n) for n in report["latency"]}
    if told := [f"{cell(n)} {r:.2f}" for n, r in times.items() if r is not None and n != "dense"]:
        lines += ["", f"Encoder time on this machine, unpatched PyTorch = 1: {', '.join(told)}."]
    return "\n".join(lines) + "\n\n"


def parity_table(report: dict[str, Any], verdict: Verdict) -> list[str]:
    """A row for each stage; stored values behind those of this run."""
    every = {"max_rel": "largest error", **JUDGED, "decision_agreement": "equal decisions"}
    there = {key for row in report["parity"].values() for key in row}
    metrics = [metric for metric in every if metric in there]
    rows = [f"| stage | against | {' | '.join(every[metric] for metric in metrics)} | gates |"]
    rows.append(f"|---|---|{'--:|' * len(metrics)}---|")
    stored = {(c.stage, c.metric): c for c in verdict.checks}
    for name, row in report["parity"].items():
        cells = [value(stored.get((name, m), Check(name, m, row[m]))) for m in metrics]
        gates = "hold" if row["passed"] else "**do not hold**"
        rows.append(f"| {cell(name)} | {cell(row['against'])} | {' | '.join(cells)} | {gates} |")
    return rows


def other_table(report: dict[str, Any], verdict: Verdict) -> list[str]:
    """Quality, nodes and multiply-adds."""
    stored = [c for c in verdict.checks if c.stage not in report["parity"] and c.metric not in ("gates", "run", "time")]
    if not stored:
        line = quality_line(report["quality"])
        return ["", f"{line[0].upper()}{line[1:]}."]
    return ["", "| | now (baseline) |", "|---|--:|", *(f"| {cell(c.stage)} {c.metric} | {value(c)} |" for c in stored)]


def value(check: Check) -> str:
    """A number, the stored one behind it; bold where it is worse than it may be."""
    text = shown(check.now) + ("" if check.then is None else f" ({shown(check.then)})")
    return text if check.passed else f"**{text}**"


def cell(text: object) -> str:
    """Text in which nothing is markup: names come from folders and files."""
    plain = html.escape(" ".join(str(text).split()))
    return "".join(f"\\{c}" if c in "\\`*_[]|~#" else c for c in plain)


def append_summary(path: Path, text: str) -> None:
    """Add it to a file: a job's page collects what all of its commands say.

    Raises:
        OutputError: it cannot be written.
    """
    with disk_errors(path, "pass another --summary"), path.open("a", encoding="utf-8") as file:
        file.write(text)
