"""Pictures of docs/methods.md, and the methods table of the README.

python scripts/method_docs            # both
python scripts/method_docs --table    # the table alone (no model is run)
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # jobs import each other by the names of their folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only the README's table")
    given = parser.parse_args()

    from method_docs.pictures import pictures
    from method_docs.table import table

    table()
    if not given.table:
        pictures()


if __name__ == "__main__":
    main()
