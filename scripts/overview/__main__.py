"""Draw docs/images/overview.jpg, the README's picture: merged tokens, masks of the plain and of the merged model.

    python scripts/overview [FILE.jpg]

Everything in it comes from the bundled demo model, run when the script is; the same versions make the same bytes.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # jobs import each other by the names of their folders
PICTURE = Path(__file__).parents[2] / "docs" / "images" / "overview.jpg"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("target", type=Path, nargs="?", default=PICTURE, metavar="FILE.jpg", help="%(default)s")
    target = parser.parse_args().target

    from overview.comparison import compare
    from overview.drawing import sheet

    sheet(compare()).save(target, quality=88, optimize=True)
    print(target)


if __name__ == "__main__":
    main()
