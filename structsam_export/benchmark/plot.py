"""A picture of a benchmark: latency of every variant, and latency against multiply-adds."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from structsam_export.files import atomic


def plot(report: dict[str, Any], target: Path) -> None:
    """Draw a report of `bench` into a PNG, SVG or PDF file, as the name ends.

    Left: the median of every variant with its 10th to 90th percentile, first variant on top. Right: ratio of latency
    against ratio of MACs; below the diagonal, saved work saves more time than its share.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt
    import numpy as np

    rows = report["rows"]
    known = [r for r in rows if r["macs"]]
    figure, axes = plt.subplots(1, 2 if len(known) > 1 else 1, figsize=(12, 1.4 + 0.34 * len(rows)), squeeze=False)
    bars = axes[0][0]
    middle = np.array([r["p50"] for r in rows])
    low, high = (np.array([np.percentile(r["seconds"], q) * 1e3 for r in rows]) for q in (10, 90))
    bars.barh(
        range(len(rows)), middle, xerr=[np.maximum(middle - low, 0), np.maximum(high - middle, 0)], color="#4878a8"
    )
    bars.set_yticks(range(len(rows)), [r["name"] for r in rows])
    for y, row in enumerate(rows):
        bars.text(0.01 * middle.max(), y, f"{row['ratio']:.2f}", va="center", color="white", fontsize=8)
    bars.invert_yaxis()
    bars.set_xlabel("ms, median and 10-90 %; ratio to the first in the bars")
    if len(known) > 1:
        scatter, base = axes[0][1], rows[0]
        reference = base["macs"] or known[0]["macs"]
        scatter.axline((1, 1), slope=1, color="#999", linewidth=0.8)
        for row in known:
            x, y = row["macs"] / reference, row["ratio"]
            scatter.plot(x, y, "o", color="#4878a8")
            scatter.annotate(row["name"], (x, y), textcoords="offset points", xytext=(4, 3), fontsize=7)
        scatter.set_xlabel("MACs, ratio to the first")
        scatter.set_ylabel("latency, ratio to the first")
    conditions = report["conditions"]
    figure.suptitle(f"{conditions['cpu']}, {conditions['threads']} threads, {conditions['rounds']} rounds", fontsize=9)
    figure.tight_layout()
    with atomic(target) as partial:
        figure.savefig(partial, format=target.suffix.removeprefix(".").lower() or "png", dpi=130)
    plt.close(figure)
