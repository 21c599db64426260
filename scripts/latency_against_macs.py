"""Join runs of `structsam-export bench` into one table and one picture: latency against MACs, both relative to the
first row of their own run.

    structsam-export bench plain=... FOLDER... --json > run.json      # as often as memory asks for
    python scripts/latency_against_macs.py run.json... --plot docs/images/latency-macs.png
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from statistics import median
from typing import Any


def rows_of(path: Path) -> list[dict[str, Any]]:
    """Rows of one run, with ratios to its first."""
    first, *others = json.loads(path.read_text())["rows"]

    def compared(row: dict[str, Any]) -> dict[str, Any]:
        pairs = [mine / its for mine, its in zip(row["seconds"], first["seconds"])]
        return row | {
            "macs_ratio": row["macs"] / first["macs"],
            "medians": median(row["seconds"]) / median(first["seconds"]),
            "paired": median(pairs),
            "fastest": min(row["seconds"]) / min(first["seconds"]),
        }

    return [compared(row) for row in others]


def table(rows: list[dict[str, Any]]) -> str:
    """The rows in Markdown, least time first."""
    lines = [
        "| encoder | GMACs | of plain | nodes | medians | paired | fastest | activations, MiB | process, MiB |",
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for r in sorted(rows, key=lambda row: row["paired"]):
        ratios = " | ".join(f"{r[key]:.2f}" for key in ("medians", "paired", "fastest"))
        memory = f"{r['activation_bytes'] / 2**20:,.0f} | {r['peak_bytes'] / 2**20:,.0f}"
        macs = f"{r['macs'] / 1e9:.1f} | {r['macs_ratio']:.2f}"
        lines.append(f"| {r['name']} | {macs} | {r['nodes']:,} | {ratios} | {memory} |")
    return "\n".join(lines)


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


def main() -> None:
    """Print the table; draw if asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--plot", type=Path)
    given = parser.parse_args()
    rows = {row["name"]: row for path in given.runs for row in rows_of(path)}
    if given.plot:
        plot(list(rows.values()), given.plot)
    print(table(list(rows.values())))


if __name__ == "__main__":
    main()
