"""The thesis' tables of accuracy again: ours beside the published figures.

    python scripts/paper_tables --checkpoint sam_vit_b_01ec64.pth --root ~/data
    python scripts/paper_tables --tables 4.4,4.10 --limit 20 ...               # some tables, some images
    python scripts/paper_tables --model demo --datasets bundled-thin --limit 2  # to see that it works

Published figures lie in `published.json`. Every data set is evaluated once for all tables, with HQ-SAM's protocol
and `--compat thesis`; results are kept in evaluations/ and an interrupted run continues there. Cells: mIoU/boundary
IoU, ours, then the published one. Differences below .01 are within what the thesis calls noise of devices and seeds.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # jobs import each other by the names of their folders


def main() -> None:
    from paper_tables.package import StructSAMError
    from paper_tables.tables import PUBLISHED, show

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="vit_b", help="vit_b is what the thesis used")
    parser.add_argument("--checkpoint", help="weights; default: cached or downloaded")
    parser.add_argument("--root", type=Path, help="folder of HQ-SAM's data")
    parser.add_argument("--tables", default=",".join(PUBLISHED["tables"]), help="%(default)s")
    parser.add_argument("--datasets", default=",".join(PUBLISHED["datasets"]), help="%(default)s")
    parser.add_argument("--limit", type=int, help="images of each data set, spread evenly")
    parser.add_argument("--output", type=Path, default=Path("evaluations"), help="folder of the results")
    given = parser.parse_args()
    tables = {name: PUBLISHED["tables"][name] for name in given.tables.split(",") if name in PUBLISHED["tables"]}
    if not tables:
        parser.error(f"no such table; known: {', '.join(PUBLISHED['tables'])}")
    try:
        show(tables, given)
    except StructSAMError as error:
        print(f"Error: {error}", file=sys.stderr)
        raise SystemExit(error.exit_code) from None


if __name__ == "__main__":
    main()
