"""A tuning for people: table, picture (Pareto front and heat map) and page."""

from __future__ import annotations

import base64
import html
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from structsam_export.evaluate.command import spread
from structsam_export.files import atomic, scratch
from structsam_export.tune.space import KEEP


def table(report: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Head and rows: uniform schedules and finalists by what they save; * marks the one that was taken."""
    head = ("schedule", *dict.fromkeys(("MACs", report["cost"])), "lost, selection half", "lost, held out")
    chosen = report["tuned"][report["chosen"]]
    rows = sorted([*report["uniform"], *report["tuned"]], key=lambda row: (-row["cost"], row["name"]))
    ratios = ("macs_ratio",) if report["cost"] == "MACs" else ("macs_ratio", "cost")
    return head, [
        (
            ("* " if row is chosen else "") + row["name"],
            *(f"{row[name]:.3f}" for name in ratios),
            spread(row["selection"]),
            spread(row["held_out"]),
        )
        for row in rows
    ]


def plot(report: dict[str, Any], target: Path) -> None:
    """Left: mIoU lost on held-out images against MACs, uniform and tuned. Right: what each block alone does to masks.

    Args:
        report: of `command.run`.
        target: a picture file; its ending says which kind.

    Raises:
        OutputError: it cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    tables = by_method(report["sensitivity"])
    figure, axes = plt.subplots(1, 1 + len(tables), figsize=(6 + 4.5 * len(tables), 4.6))
    pareto(axes[0], report)
    for axis, one in zip(axes[1:], tables):
        heat(figure, axis, one)
    figure.tight_layout()
    with atomic(target) as partial:
        figure.savefig(partial, format=target.suffix.removeprefix(".").lower() or "png", dpi=90)
    plt.close(figure)


def pareto(axis: Any, report: dict[str, Any]) -> None:
    """Uniform schedules, one line a method, and the tuned ones with their intervals."""
    methods = dict.fromkeys((row["schedule"]["method"], row["schedule"]["variant"]) for row in report["uniform"])
    lines = {
        f"{m} {v or ''} uniform": [
            r for r in report["uniform"] if (r["schedule"]["method"], r["schedule"]["variant"]) == (m, v)
        ]
        for m, v in methods
    }
    for label, rows in {**lines, "tuned": report["tuned"]}.items():
        rows = sorted(rows, key=lambda row: row["cost"])
        xs, ys = [row["cost"] for row in rows], [100 * row["held_out"]["mean"] for row in rows]
        ends = [
            [100 * abs(r["held_out"][k] - r["held_out"]["mean"]) if r["held_out"][k] is not None else 0 for r in rows]
            for k in ("low", "high")
        ]
        axis.errorbar(
            xs,
            ys,
            yerr=ends,
            marker="o",
            markersize=4,
            elinewidth=0.6,
            capsize=2,
            label=label,
            linewidth=0 if label == "tuned" else 1,
        )
    chosen = report["tuned"][report["chosen"]]
    axis.plot(
        chosen["cost"],
        100 * chosen["held_out"]["mean"],
        "o",
        markersize=12,
        markerfacecolor="none",
        color="black",
    )
    axis.axhline(0, color="#888", linewidth=0.6)
    axis.set_xlabel(f"{report['cost']}, ratio to dense")
    axis.set_ylabel("mIoU lost on held-out images, points")
    axis.legend(fontsize=7)


def by_method(tables: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """One table a method of what was tried: residual consistency of every density in one, each with its density."""
    found: dict[str, dict[str, Any]] = {}
    for table in tables:
        one = found.setdefault(table["method"], {"method": table["method"], "blocks": [[] for _ in table["blocks"]]})
        for options, more in zip(one["blocks"], table["blocks"]):
            for option in more:
                density = f" {table['density']:g}" if option["mlp"] == KEEP else ""
                labelled = {**option, "label": f"{option['rate']:g} {option['mlp']}{density}".removesuffix(" none")}
                if option["tried"] and labelled["label"] not in [o["label"] for o in options]:
                    options.append(labelled)
    return list(found.values())


def heat(figure: Any, axis: Any, one: dict[str, Any]) -> None:
    """Blocks x options of one method: disagreement of each alone with the unpatched model's masks, in points."""
    import numpy as np

    options = list(dict.fromkeys(o["label"] for block in one["blocks"] for o in block))
    grid = np.full((len(options), len(one["blocks"])), np.nan)
    for column, block in enumerate(one["blocks"]):
        for option in block:
            grid[options.index(option["label"]), column] = 100 * option["disagreement"]
    image = axis.imshow(grid, cmap="YlOrRd", vmin=0, aspect="auto")
    for (y, x), value in np.ndenumerate(grid):
        if not np.isnan(value):
            axis.text(x, y, f"{value:.1f}", ha="center", va="center", fontsize=6)
    axis.set_xticks(range(grid.shape[1]))
    axis.set_yticks(range(len(options)), options, fontsize=7)
    axis.set_xlabel("block")
    axis.set_title(f"{one['method']}, one block alone:\nhow far masks move, points of IoU", fontsize=8)
    figure.colorbar(image, ax=axis)


def write_page(report: dict[str, Any], path: Path) -> None:
    """One HTML file: verdict, picture, table.

    Raises:
        OutputError: it cannot be written.
    """
    with scratch("structsam-tune-") as folder:
        plot(report, folder / "tune.svg")
        picture = base64.b64encode((folder / "tune.svg").read_bytes()).decode()
    head, rows = table(report)
    cells = "".join("<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in row) + "</tr>" for row in rows)
    model, images = report["model"], report["images"]
    masks = "true masks" if images["true_masks"] else "no true masks: loss is the disagreement with the unpatched model"
    text = f"""<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Tuning of {html.escape(model["name"])}</title>
<style>body{{font:15px/1.5 sans-serif;max-width:70rem;margin:2rem auto}}td,th{{padding:.2rem .8rem;text-align:left}}
img{{max-width:100%}}</style>
<h1>Tuning of {html.escape(model["name"])}</h1>
<p>Weights {model["weights"][:12]}; {html.escape(images["set"])}, {images["selection"]} images to choose on,
{images["held_out"]} held out ({masks}). The cost is {html.escape(report["cost"])}. Brackets hold 95 % bootstrap
intervals over images.</p>
{"".join(f"<p>{html.escape(line)}</p>" for line in report["verdict"]["lines"])}
<img alt="mIoU lost against MACs, and what each block alone does to masks" src="data:image/svg+xml;base64,{picture}">
<table><tr>{"".join(f"<th>{html.escape(c)}</th>" for c in head)}</tr>{cells}</table>
</html>
"""
    with atomic(path) as partial:
        partial.write_text(text, encoding="utf-8")
