"""Measure encoders on a machine with an NVIDIA GPU and no internet; docs/gpu.md says what and how.

    python scripts/gpu_suite.py --wheels WHEELS --split                    # before carrying: parts below 64 MiB
    python scripts/gpu_suite.py --wheels WHEELS --random --output results  # there: install, measure
    python scripts/gpu_suite.py --dry-run --output results                 # anywhere: all that needs no GPU

Results go to OUTPUT/gpu_suite.json and gpu_suite.md after every step. The work is in the package scripts/gpu_suite/.
"""

import sys
from pathlib import Path

# Both this folder and the repository's root: nothing of the project needs to be installed.
sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]

from gpu_suite.cli import main  # noqa: E402

if __name__ == "__main__":
    main(__doc__ or "")
