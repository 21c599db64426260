"""A picture of a sweep: mIoU lost against MACs and against latency, a panel for each set."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from structsam_export.files import atomic
from structsam_export.sweep.choice import front
from structsam_export.sweep.rows import lost_of
from structsam_export.sweep.show import MEAN

COLUMNS = 3
MARKERS = "osD^v"


def plot(report: dict[str, Any], target: Path) -> None:
    """Draw a report of `compare` into a PNG, SVG or PDF file, as the name ends.

    First the mean over sets, then every set, against MACs; then the same against latency, where it was measured. The
    front of each panel is its own; names stand at the front of the means.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    groups = list(report["groups"])
    views: list[str | None] = [None, *groups] if len(groups) > 1 else [groups[0]]
    costs = ["macs", "latency"] if report["latency"] else ["macs"]
    columns = min(COLUMNS, len(views))
    lines = -(-len(views) // columns)
    size = (max(4.4 * columns, 6), 3.5 * lines * len(costs) + 0.9)
    figure, axes = plt.subplots(lines * len(costs), columns, figsize=size, squeeze=False)
    for axis in axes.flat:
        axis.set_visible(False)
    for i, cost in enumerate(costs):
        for k, group in enumerate(views):
            axis = axes[i * lines + k // columns][k % columns]
            axis.set_visible(True)
            panel(axis, report, cost, group, names=k == 0)
    handles, labels = axes[0][0].get_legend_handles_labels()
    known = dict(zip(labels, handles))
    across = 2 * columns + 1
    figure.legend(known.values(), known.keys(), loc="lower center", ncol=across, fontsize=7, frameon=False)
    figure.suptitle(f"{report['model']} on {report['dataset']}: lower left is better", fontsize=10)
    room = (0.28 + 0.16 * -(-len(known) // across)) / size[1]
    figure.tight_layout(rect=(0, room, 1, 1))
    with atomic(target) as partial:
        figure.savefig(partial, format=target.suffix.removeprefix(".").lower() or "png", dpi=110)
    plt.close(figure)


def panel(axis: Any, report: dict[str, Any], cost: str, group: str | None, *, names: bool) -> None:
    """One set (None: the mean over sets): points by method and variant, the front ringed and joined by steps."""
    points = [(cost_of(row, cost), 100 * lost_of(row, group)) for row in report["rows"]]
    for (x, y), row, (color, marker) in zip(points, report["rows"], styles(report["rows"])):
        label = f"{row['method']} {row['variant']}" if row["method"] else row["name"]
        # The higher the rate, the larger.
        axis.plot(x, y, marker, color=color, markersize=3 + 5 * (row["rate"] or 0), alpha=0.85, label=label, lw=0)
    best = sorted((point, row["name"]) for point, row, on in zip(points, report["rows"], front(points)) if on)
    xs, ys = zip(*(point for point, _ in best))
    axis.step(xs, ys, where="post", color="#555", linewidth=0.8, zorder=0)
    axis.plot(xs, ys, "o", markerfacecolor="none", markeredgecolor="#222", markersize=11, markeredgewidth=0.7)
    for (x, y), name in best if names else ():
        axis.annotate(name, (x, y), textcoords="offset points", xytext=(4, 4), fontsize=6, rotation=30)
    if group is None or len(report["groups"]) == 1:
        axis.axhline(100 * report["loss"], color="#b33", linewidth=0.7, linestyle=":")
    images = "" if group is None else f" ({report['groups'][group]['images']} images)"
    axis.margins(0.08, 0.12)  # room for names
    axis.set_title((MEAN if group is None else group or report["dataset"]) + images, fontsize=8)
    axis.set_xlabel({"macs": "MACs, ratio to dense", "latency": "latency (eager), ratio to dense"}[cost], fontsize=8)
    axis.set_ylabel("mIoU lost, points", fontsize=8)
    axis.tick_params(labelsize=7)


def cost_of(row: dict[str, Any], cost: str) -> float:
    """A row's ratio of MACs or of latency."""
    return float(row["macs_ratio"] if cost == "macs" else row["latency"]["ratio"])


def styles(rows: list[dict[str, Any]]) -> list[tuple[Any, str]]:
    """Colour by method, marker by variant; the unpatched model black."""
    import matplotlib

    colors = matplotlib.colormaps["tab10"]
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"]))
    variants = {m: list(dict.fromkeys(r["variant"] for r in rows if r["method"] == m)) for m in methods}
    return [
        (colors(methods.index(row["method"]) % 10), MARKERS[variants[row["method"]].index(row["variant"]) % 5])
        if row["method"]
        else ("black", "*")
        for row in rows
    ]
