"""A tuned schedule against random ones of the same cost, on the images it was chosen on.

    structsam-export tune --target-macs 0.725 --output evaluations/demo-tune
    python scripts/random_schedules evaluations/demo-tune

Options of every block are drawn at random until 200 schedules lie within .01 of the chosen one's cost. All of them are
evaluated on some images of the selection half; those that lose more there than the chosen one by three standard errors
of the paired difference are beaten, and the others are evaluated on the whole half, where the mean decides. The same is
told for the disagreement with the unpatched model. Every figure is kept in the folder, where `tune` keeps its own.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

sys.path[0] = str(Path(__file__).parents[1])


def main() -> None:
    from random_schedules.compare import compared

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, help="results of tune, for MACs, on a data set")
    parser.add_argument("--count", type=int, default=200, help="random schedules; default: %(default)s")
    parser.add_argument("--images", type=int, default=8, help="that all are evaluated on; default: %(default)s")
    parser.add_argument("--checkpoint", help="weights that were tuned for; default: the model's own")
    parser.add_argument("--jobs", type=int, default=1, help="images at once; default: %(default)s")
    given = parser.parse_args()
    found: dict[str, Any] = compared(**vars(given))
    print(json.dumps(found, indent=2))


if __name__ == "__main__":
    main()
