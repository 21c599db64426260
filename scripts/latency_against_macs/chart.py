"""The picture of latency against MACs."""

from __future__ import annotations

from pathlib import Path
from typing import Any


def plot(rows: list[dict[str, Any]], target: Path) -> None:
    """One point a row, time (median of paired ratios) over MACs; on the line, MACs saved are time saved."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(figsize=(10, 6.5), layout="constrained")
    axes.plot([0.5, 1.25], [0.5, 1.25], color="0.8", zorder=0)
    axes.axhline(1, color="0.8", zorder=0)
    axes.text(1.24, 1.01, "plain export", color="0.5", ha="right")
    ordered = sorted(rows, key=lambda row: row["paired"])
    above, below = ((0, 6), "bottom"), ((0, -6), "top")
    for number, r in enumerate(ordered, 1):
        colour = "tab:red" if "structsam" in r["name"] else "tab:blue"
        axes.plot(r["macs_ratio"], r["paired"], "o", ms=5, color=colour, label=f"{number}  {r['name']}")
        offset, side = above if number % 2 else below
        place = (r["macs_ratio"], r["paired"])
        axes.annotate(str(number), place, offset, textcoords="offset points", ha="center", va=side, fontsize=8)
    figure.legend(loc="outside right center", fontsize=8, handlelength=1, frameon=False)
    axes.set(xlabel="MACs of the graph / plain export", ylabel="time / plain export (median of paired runs)")
    axes.set(xlim=(0.5, 1.25), ylim=(0.4, 1.05))
    figure.savefig(target, dpi=110)
