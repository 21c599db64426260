"""Evaluating rules on one set, and what differs from the published one."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from selection_rules.package import ExportConfig, Measurer, Store, loaded_for, measure, opened
from selection_rules.rules import register

PUBLISHED = "structsam"


def compared(
    rates: Sequence[float],
    dataset: str,
    limit: int | None,
    model: str,
    checkpoint: str | None,
    jobs: int,
    output: Path,
) -> list[dict[str, Any]]:
    """A row for each rate and rule: `lost` and `moved` (1 - IoU with the unpatched model's masks), and what is less of
    both than with the published rule (`gain`, `nearer`; None for that one), as intervals."""
    names = [PUBLISHED, *register()]
    base = ExportConfig(model=model, checkpoint=checkpoint, precision="fp32")
    loaded = loaded_for(base)
    chosen, every = opened(dataset, None, None)
    samples = measure.spread(every, limit or len(every))
    store = Store(output, {"rules": True, "dataset": chosen.name, "weights": loaded.weights})
    meter = Measurer(loaded, store, workers=jobs)
    known = [(rate, name) for rate in rates for name in names]
    configs = [ExportConfig(**{**vars(base), "method": name, "rate": rate}) for rate, name in known]
    with store.kept():
        both = meter.measure("rules", configs, samples)
    published = [known.index((rate, PUBLISHED)) for rate, _ in known]
    rows: list[dict[str, Any]] = [{"rate": rate, "rule": name, "images": len(samples)} for rate, name in known]
    for (value, less), figures in zip((("lost", "gain"), ("moved", "nearer")), both):
        for row, mean, gain in zip(rows, measure.summary(figures), measure.summary(figures[published] - figures)):
            row |= {value: mean, less: None if row["rule"] == PUBLISHED else gain}
    return rows


def table(rows: Sequence[dict[str, Any]]) -> str:
    """The rows in Markdown."""

    def text(row: Any) -> str:
        return f"{row['mean']:.4f} ({row['low']:.4f}, {row['high']:.4f})" if row else ""

    columns = ("lost", "gain", "moved", "nearer")
    lines = [f"{rows[0]['images']} images", ""]
    lines += [
        "| rate | rule | mIoU lost | gain over the published rule | 1 - IoU with the unpatched model | nearer by |"
    ]
    lines += ["|--:|---|---|---|---|---|"]
    lines += [f"| {r['rate']:g} | {r['rule']} | {' | '.join(text(r[c]) for c in columns)} |" for r in rows]
    return "\n".join(lines)
