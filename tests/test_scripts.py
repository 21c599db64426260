"""scripts/: every job starts, and is listed."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SCRIPTS = ROOT / "scripts"
JOBS = sorted(path.parent.name for path in SCRIPTS.glob("*/__main__.py"))


def test_the_list_of_jobs_is_complete():
    assert sorted(re.findall(r"^\| `(\w+)` \|", (SCRIPTS / "README.md").read_text(), re.MULTILINE)) == JOBS
    assert {p.name for p in SCRIPTS.iterdir() if not p.name.startswith("__")} == {*JOBS, "README.md"}


@pytest.mark.parametrize("job", JOBS)
def test_a_job_says_how_it_is_used(job, tmp_path):
    command = [sys.executable, str(SCRIPTS / job), "--help"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    assert f"scripts/{job}" in done.stdout


@pytest.mark.parametrize("job", JOBS)
def test_an_entry_is_one_screen(job):
    assert len((SCRIPTS / job / "__main__.py").read_text().splitlines()) <= 80
