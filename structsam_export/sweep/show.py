"""A sweep for people: table, CSV, and a page of documentation."""

from __future__ import annotations

import csv
import os
from pathlib import Path
from typing import Any

from structsam_export.evaluate.command import decimals, spread
from structsam_export.evaluate.metrics import METRICS
from structsam_export.files import atomic

MEAN = "mean over sets"


def table(report: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows: what is saved and lost (mean over sets), then the loss of every set; * marks the Pareto front."""
    sets = list(report["groups"]) if len(report["groups"]) > 1 else []
    timed = report["latency"] is not None
    short = [group.removeprefix(f"{report['dataset']}-") for group in sets]
    head = ("model", "MACs", *(("latency",) if timed else ()), "mIoU", "- dense", "boundary - dense", *short)
    return head, [line_of(row, sets, timed) for row in ordered(report)]


def ordered(report: dict[str, Any]) -> list[dict[str, Any]]:
    """Rows by MACs, most first: the unpatched model on top."""
    return sorted(report["rows"], key=lambda row: (-row["macs"], row["name"]))


def line_of(row: dict[str, Any], sets: list[str], timed: bool) -> tuple[str, ...]:
    """A row as text."""
    mean, marks = row["mean"], row["front"]
    time = (f"{row['latency']['ratio']:.3f}{'*' if marks['latency'] else ''}",) if timed else ()
    paired = mean["difference"]
    lost = (spread(paired["iou"], "+"), decimals(paired["boundary_iou"]["mean"], "+")) if paired else ("-", "-")
    own = [row["groups"][group]["difference"] for group in sets]
    macs = f"{row['macs_ratio']:.3f}{'*' if marks['macs'] else ''}"
    each = [decimals(found["iou"]["mean"], "+") if found else "-" for found in own]
    return (row["name"], macs, *time, decimals(mean["iou"]["mean"]), *lost, *each)


def choice_lines(report: dict[str, Any]) -> list[str]:
    """The recommendation in words."""
    percent, many = f"{100 * report['loss']:g}", len(report["groups"]) > 1
    points = f"{percent} point{'' if percent == '1' else 's'} of mIoU"
    what = f" ({MEAN})" if many else ""
    best, sure = report["recommendation"], report["cautious"]
    if best is None:
        least = max((r for r in report["rows"] if r["mean"]["difference"]), key=lambda r: difference(r))
        return [
            f"No configuration saves MACs and loses at most {points}{what}. The smallest loss: {least['name']}, mIoU "
            f"{decimals(difference(least), '+')}."
        ]
    lines = [f"Largest saving that loses at most {points}{what}: {in_words(best, many)}."]
    if sure is None:
        lines.append("Of no configuration does the whole interval keep to that: these images cannot make sure of it.")
    elif sure["name"] != best["name"]:
        lines.append(f"Largest one of which the whole interval keeps to that: {in_words(sure, many)}.")
    else:
        lines.append("Its whole interval keeps to that.")
    return lines


def difference(row: dict[str, Any]) -> float:
    """Mean difference of a row's mIoU to the unpatched model."""
    return float(row["mean"]["difference"]["iou"]["mean"])


def in_words(choice: dict[str, Any], many: bool) -> str:
    """A choice in words, with the set that suffers most where there are several."""
    text = f"{choice['name']}, {choice['saved']:.1%} of the MACs for mIoU {spread(choice['difference'], '+')}"
    worst = choice["worst"]
    return f"{text}; worst set {worst['group']}, {decimals(worst['difference'], '+')}" if many and worst else text


def write_csv(report: dict[str, Any], path: Path) -> None:
    """One line for each model and set, and for the mean over sets.

    Raises:
        OutputError: it cannot be written.
    """
    facts = ("name", "method", "variant", "mlp", "rate", "layers", "macs", "macs_ratio")
    paired = [f"{metric}_difference{end}" for metric in METRICS for end in ("", "_low", "_high")]
    with atomic(path) as partial, partial.open("w", newline="", encoding="utf-8") as file:
        lines = csv.writer(file)
        lines.writerow([*facts, "latency_ratio", "set", *METRICS, *paired])
        for row in report["rows"]:
            own = [row[key] for key in facts] + [row["latency"]["ratio"] if row["latency"] else None]
            for group, found in {**row["groups"], MEAN: row["mean"]}.items():
                against = found["difference"]
                ends = [against[m][k] if against else None for m in METRICS for k in ("mean", "low", "high")]
                lines.writerow([*own, group or report["dataset"], *(found[m]["mean"] for m in METRICS), *ends])


def write_markdown(report: dict[str, Any], path: Path, command: str, picture: Path | None = None) -> None:
    """The page of a sweep: command, conditions, picture, recommendation, table.

    Args:
        report: of `compare`.
        path: the page.
        command: what made it, to be typed again.
        picture: of `plot.plot`; linked relative to the page.

    Raises:
        OutputError: it cannot be written.
    """
    head, rows = table(report)
    linked = [] if picture is None else [f"![mIoU lost against MACs]({relative(picture, path)})", ""]
    lines = [
        "# Accuracy",
        "",
        "Written by the command below; do not edit.",
        "",
        f"    {command}",
        "",
        *conditions(report),
        "",
        *linked,
        *(f"**{line}**" if i == 0 else line for i, line in enumerate(choice_lines(report))),
        "",
        *(row_of(line) for line in (head, tuple("--:" if i else "---" for i in range(len(head))), *rows)),
        "",
        *(f"* {note}" for note in report["notes"]),
    ]
    with atomic(path) as partial:
        partial.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")


def relative(picture: Path, page: Path) -> str:
    """A link from a page to a picture."""
    return Path(os.path.relpath(picture.absolute(), page.absolute().parent)).as_posix()


def row_of(cells: tuple[str, ...]) -> str:
    """A row of a Markdown table."""
    return f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in cells)} |"


def conditions(report: dict[str, Any]) -> list[str]:
    """What the figures were made with, and how to read them."""
    sets = ", ".join(
        f"{group or report['dataset']} ({found['images']} images, {found['objects']} objects)"
        for group, found in report["groups"].items()
    )
    limit = f", at most {report['limit']} of each set, spread evenly" if report["limit"] else ""
    model, torch = f"`{report['model']}` (SHA-256 {report['sha256'][:12]})", report["versions"].get("torch")
    lines = [
        f"Model {model}, FP32 in PyTorch {torch}. Images{limit}: {sets}. Protocol `{report['protocol']}`, prompt "
        f"`{report['prompt']}`, from the true masks.",
        "",
        "MACs are the encoder's, counted as the papers do, as a share of the unpatched model's. `- dense` is the "
        "difference to it, paired by image; brackets hold the 95 % bootstrap interval. \\* marks the Pareto front: "
        "nothing else costs less and loses less mIoU.",
    ]
    if len(report["groups"]) > 1:
        lines.append(
            "Sets are never pooled: figures are plain means over the sets, whatever their size; the last columns hold "
            "each set's own difference of mIoU. Images are drawn anew within each set; a set of one image adds nothing "
            "to the intervals, which are too narrow by that."
        )
    if timing := report["latency"]:
        lines.append(
            f"Latency is the encoder's in eager PyTorch, median of {timing['runs']} interleaved rounds as a ratio to "
            f"the unpatched model ({timing['cpu']}, threads: {timing['threads']}). What an export gains is in "
            "`docs/performance.md`."
        )
    return lines
