"""An environment of its own for other people's packages, installed once and kept for later runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CACHE = Path(__file__).parents[1] / ".pytest_cache"
SLOWEST = 900  # seconds an installation may take


def python_with(name, packages):
    """Python of the environment, in $STRUCTSAM_<NAME> or in .pytest_cache/<name>, with these packages.

    The test is skipped, with the reason, where it cannot be installed.
    """
    place = Path(os.environ.get(f"STRUCTSAM_{name.upper()}", CACHE / name)).absolute()
    done, python = place / "installed", place / "bin" / "python"
    if not done.exists() or done.read_text() != repr(packages):
        shutil.rmtree(place, ignore_errors=True)
        for command in (
            [sys.executable, "-m", "venv", str(place)],
            [str(python), "-m", "pip", "install", "-q", "--disable-pip-version-check", *packages],
        ):
            made = subprocess.run(command, capture_output=True, text=True, timeout=SLOWEST)
            if made.returncode:
                pytest.skip(f"the environment cannot be installed: {made.stderr.strip().splitlines()[-1]}")
        done.write_text(repr(packages))
    return python
