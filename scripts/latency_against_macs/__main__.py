"""Join runs of `structsam-export bench` into one table and one picture.

    structsam-export bench plain=... FOLDER... --json > run.json      # as often as memory asks for
    python scripts/latency_against_macs run.json... --plot docs/images/latency-macs.png

The table is docs/performance.md's, the picture shows latency against MACs; both relative to the first row of each run.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # jobs import each other by the names of their folders


def main() -> None:
    from latency_against_macs.chart import plot
    from latency_against_macs.rows import rows_of, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, help="JSON files of bench")
    parser.add_argument("--plot", type=Path, metavar="FILE.png", help="also draw the picture")
    given = parser.parse_args()
    rows = list({row["name"]: row for path in given.runs for row in rows_of(path)}.values())
    if given.plot:
        plot(rows, given.plot)
    print(table(rows))


if __name__ == "__main__":
    main()
