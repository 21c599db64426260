"""Rules by which StructSAM could choose what merges, beside the published one at equal MACs; see `rules.py`.

    python scripts/selection_rules --rates 0.5,0.75

mIoU lost on the generated set, how far masks move, and the differences to the published rule paired by image, with 95 %
intervals.
Finished images are kept in --output, so that a stopped run continues.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])


def main() -> None:
    from selection_rules.compare import compared, table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rates", default="0.5,0.75", help="default: %(default)s")
    parser.add_argument("--dataset", default="generated", help="a name or a folder; default: %(default)s")
    parser.add_argument("--limit", type=int, help="images, at even distances; default: all")
    parser.add_argument("--model", default="demo", help="default: %(default)s")
    parser.add_argument("--checkpoint", help="default: the model's own weights")
    parser.add_argument("--jobs", type=int, default=1, help="images at once; default: %(default)s")
    parser.add_argument("--output", type=Path, default=Path("evaluations/selection-rules"), help="default: %(default)s")
    parser.add_argument("--json", action="store_true")
    given = vars(parser.parse_args())
    as_json, rates = given.pop("json"), [float(rate) for rate in given.pop("rates").split(",")]
    found = compared(rates, **given)
    print(json.dumps(found, indent=2) if as_json else table(found))


if __name__ == "__main__":
    main()
