"""Train the bundled demo model, or measure its weights; docs/demo-model.md has its figures.

scripts/demo_model/fetch_pictures.sh DATA
python scripts/demo_model DATA --out demo.safetensors
python scripts/demo_model DATA --resume demo.resume.pt
python scripts/demo_model DATA --evaluate demo.safetensors
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # jobs import each other by the names of their folders


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", help="folder made by fetch_pictures.sh")
    parser.add_argument("--out", type=Path, default=Path("demo.safetensors"), help="weights; default: %(default)s")
    parser.add_argument("--resume", type=Path, metavar="STATE", help="go on from OUT.resume.pt of a stopped run")
    parser.add_argument("--from", type=Path, dest="first", metavar="WEIGHTS", help="start `SECOND` at these weights")
    parser.add_argument("--evaluate", type=Path, metavar="WEIGHTS", help="only measure these weights")
    args = parser.parse_args()

    from demo_model.figures import all_figures
    from demo_model.training import Trainer, load

    if not args.evaluate:
        trainer = Trainer(args.data, args.out)
        if args.resume:
            trainer.load_state(args.resume)
        elif args.first:
            trainer.start_from(args.first)
        trainer.run()
    for name, figures in all_figures(load(args.evaluate or args.out), args.data):
        print(f"{name:10}", "  ".join(f"{k} {v:.3f}" for k, v in figures.items()), flush=True)


if __name__ == "__main__":
    main()
