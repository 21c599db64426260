"""What bounds SAM's encoder on a GPU, and what merging and fused attention can gain there: estimates, no measurements.

    python scripts/roofline                          # ViT-B, StructSAM .5 in all layers, on an H100, a 4090 and an Orin
    python scripts/roofline --model vit_h --rate 0.3

Counts operations and bytes of the encoder at 1024 x 1024, batch 1, FP16, and divides them by what a GPU can do.
Assumptions are in `estimate.py`; docs/roofline.md says how far they can be trusted.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])


def main() -> None:
    from roofline.estimate import GPUS, MODELS, page

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=MODELS, default="vit_b", help="default: %(default)s")
    parser.add_argument("--rate", type=float, default=0.5, help="of merged tokens; default: %(default)s")
    parser.add_argument("--gpus", default=",".join(GPUS), help="default: %(default)s")
    given = parser.parse_args()
    if not 0 <= given.rate <= 0.75:
        parser.error("--rate must lie between 0 and 0.75: cells of four tokens leave one")
    if unknown := [name for name in given.gpus.split(",") if name not in GPUS]:
        parser.error(f"no GPU '{unknown[0]}'; known: {', '.join(GPUS)}")
    print(page(MODELS[given.model], given.rate, given.gpus.split(",")))


if __name__ == "__main__":
    main()
