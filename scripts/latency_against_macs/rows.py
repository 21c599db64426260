"""Rows of `structsam-export bench --json`, with ratios, and as a table."""

from __future__ import annotations

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
