"""The thesis' tables of accuracy again: ours beside the published figures.

    python scripts/paper_tables.py --checkpoint sam_vit_b_01ec64.pth --root ~/data
    python scripts/paper_tables.py --tables 4.4,4.10 --limit 20 ...               # some tables, some images
    python scripts/paper_tables.py --model demo --datasets bundled-thin --limit 2  # to see that it works

Published figures lie in `paper_tables.json`. Every data set is evaluated once for all tables, with HQ-SAM's protocol
and `--compat thesis`; results are kept in evaluations/ and an interrupted run continues there. Cells: mIoU/boundary
IoU, ours, then the published one. Differences below .01 are within what the thesis calls noise of devices and seeds.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

DATA = json.loads(Path(__file__).with_suffix(".json").read_text(encoding="utf-8"))


def config_of(row: dict, layers: str, model: str, checkpoint: str | None):
    """The configuration of one row of a table."""
    from structsam_export.config import ExportConfig

    params = tuple(row.get("params", {}).items())
    given = {key: row.get(key) for key in ("method", "variant", "rate")}
    return ExportConfig(**given, params=params, layers=layers, compat="thesis", model=model, checkpoint=checkpoint)


def pair(figures: dict | None) -> str:
    """mIoU/boundary IoU of ours as text."""
    from structsam_export.evaluate.command import decimals

    return "/".join(decimals(figures[m]["mean"]) for m in ("iou", "boundary_iou")) if figures else "-"


def published(row: dict | list, column: int) -> str:
    """mIoU/boundary IoU as published; a dash where the thesis has none, or the data set is not one of its own."""
    from structsam_export.evaluate.command import decimals

    values = row if isinstance(row, list) else row["published"]
    return "/".join(map(decimals, values[column])) if 0 <= column < len(values) else "-"


def main() -> None:
    """Evaluate and print."""
    from structsam_export.cli.show import print_table
    from structsam_export.evaluate.predictors import DENSE
    from structsam_export.sweep import compare

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_b", help="vit_b is what the thesis used")
    parser.add_argument("--checkpoint", help="weights; default: cached or downloaded")
    parser.add_argument("--root", type=Path, help="folder of HQ-SAM's data")
    parser.add_argument("--tables", default=",".join(DATA["tables"]), help="%(default)s")
    parser.add_argument("--datasets", default=",".join(DATA["datasets"]), help="%(default)s")
    parser.add_argument("--limit", type=int, help="images of each data set, spread evenly")
    parser.add_argument("--output", type=Path, default=Path("evaluations"), help="folder of the results")
    given = parser.parse_args()
    tables = {name: DATA["tables"][name] for name in given.tables.split(",") if name in DATA["tables"]}
    if not tables:
        parser.error(f"no such table; known: {', '.join(DATA['tables'])}")
    wanted = {
        (name, i): config_of(row, table["layers"], given.model, given.checkpoint)
        for name, table in tables.items()
        for i, row in enumerate(table["rows"])
    }
    configs, ours = list(dict.fromkeys(wanted.values())), {}
    for dataset in given.datasets.split(","):
        root = None if dataset.startswith("bundled") else given.root
        place = given.output / f"paper-{dataset}-{given.model}"
        options = {"root": root, "protocol": "samhq", "limit": given.limit, "latency": False, "output": place}
        rows = compare(configs, dataset, **options)["rows"]
        ours[dataset] = dict(zip([DENSE, *configs], (row["mean"] for row in rows), strict=True))
    for name, table in tables.items():
        columns = {d: DATA["datasets"].index(d) if d in DATA["datasets"] else -1 for d in ours}
        body = [
            ("dense", *(x for d, k in columns.items() for x in (pair(ours[d][DENSE]), published(DATA["dense"], k))))
        ]
        for i, row in enumerate(table["rows"]):
            cells = (x for d, k in columns.items() for x in (pair(ours[d][wanted[name, i]]), published(row, k)))
            body.append((row["name"], *cells))
        print(f"Table {name}, layers {table['layers']}")
        print_table(("method", *(x for d in columns for x in (d, "published"))), body)


if __name__ == "__main__":
    from structsam_export.errors import StructSAMError

    try:
        main()
    except StructSAMError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None
