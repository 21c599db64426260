"""Evaluates the rows of the thesis' tables, and prints them beside the published figures."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from paper_tables.package import DENSE, ExportConfig, compare, decimals, print_table

PUBLISHED = json.loads(Path(__file__).with_name("published.json").read_text(encoding="utf-8"))


def show(tables: dict[str, Any], given: argparse.Namespace) -> None:
    """Evaluate all configurations of some tables on every data set, then print table by table."""
    wanted = {
        (name, i): config_of(row, table["layers"], given.model, given.checkpoint)
        for name, table in tables.items()
        for i, row in enumerate(table["rows"])
    }
    configs = list(dict.fromkeys(wanted.values()))
    ours = {dataset: figures(configs, dataset, given) for dataset in given.datasets.split(",")}
    columns = {d: PUBLISHED["datasets"].index(d) if d in PUBLISHED["datasets"] else -1 for d in ours}
    for name, table in tables.items():
        cells = (x for d, k in columns.items() for x in (pair(ours[d][DENSE]), published(PUBLISHED["dense"], k)))
        body = [("dense", *cells)]
        for i, row in enumerate(table["rows"]):
            cells = (x for d, k in columns.items() for x in (pair(ours[d][wanted[name, i]]), published(row, k)))
            body.append((row["name"], *cells))
        print(f"Table {name}, layers {table['layers']}")
        print_table(("method", *(x for d in columns for x in (d, "published"))), body)


def config_of(row: dict[str, Any], layers: str, model: str, checkpoint: str | None) -> ExportConfig:
    """The configuration of one row of a table."""
    params = tuple(row.get("params", {}).items())
    given: dict[str, Any] = {key: row.get(key) for key in ("method", "variant", "rate")}
    return ExportConfig(**given, params=params, layers=layers, compat="thesis", model=model, checkpoint=checkpoint)


def figures(configs: list[ExportConfig], dataset: str, given: argparse.Namespace) -> dict[Any, Any]:
    """Figures of the unpatched model (DENSE) and of every configuration on one data set."""
    root = None if dataset.startswith("bundled") else given.root
    place = given.output / f"paper-{dataset}-{given.model}"
    options = {"root": root, "protocol": "samhq", "limit": given.limit, "latency": False, "output": place}
    rows = compare(configs, dataset, **options)["rows"]
    return dict(zip([DENSE, *configs], (row["mean"] for row in rows), strict=True))


def pair(measured: dict[str, Any] | None) -> str:
    """mIoU/boundary IoU of ours as text."""
    return "/".join(decimals(measured[m]["mean"]) for m in ("iou", "boundary_iou")) if measured else "-"


def published(row: dict[str, Any] | list[Any], column: int) -> str:
    """mIoU/boundary IoU as published; a dash where the thesis has none, or the data set is not one of its own."""
    values = row if isinstance(row, list) else row["published"]
    return "/".join(map(decimals, values[column])) if 0 <= column < len(values) else "-"
