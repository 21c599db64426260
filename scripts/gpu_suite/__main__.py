"""Measure encoders on a machine with an NVIDIA GPU and no internet; docs/gpu.md says what and how.

    python scripts/gpu_suite --wheels WHEELS --split                    # before carrying: parts below 64 MiB
    python scripts/gpu_suite --wheels WHEELS --random --output results  # there: install, measure
    python scripts/gpu_suite --dry-run --output results                 # anywhere: all that needs no GPU

Results go to OUTPUT/gpu_suite.json and gpu_suite.md after every step.
"""

from __future__ import annotations

import sys
from pathlib import Path

# The folder of all jobs, and the repository's root: nothing of the project needs to be installed.
sys.path[:1] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[2])]


def main() -> None:
    from gpu_suite import cli

    cli.main(__doc__ or "")


if __name__ == "__main__":
    main()
