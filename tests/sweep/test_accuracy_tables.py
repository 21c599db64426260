"""`scripts/paper_tables`: its data, and a run on bundled images."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from structsam_export.methods import make_method

ROOT = Path(__file__).parents[2]
SCRIPT = ROOT / "scripts" / "paper_tables"
DATA = json.loads((SCRIPT / "published.json").read_text())


def test_published_figures():
    """The averages that the thesis prints beside them."""
    averages = {
        ("4.4", "ToMe"): (0.7081, 0.6312),
        ("4.6", "PiToMe"): (0.7016, 0.6203),
        ("4.10", "GradToMe .7"): (0.7085, 0.6302),
    }
    for (table, name), expected in averages.items():
        row = next(row for row in DATA["tables"][table]["rows"] if row["name"] == name)
        for k, value in enumerate(expected):
            assert sum(pair[k] for pair in row["published"]) / 4 == pytest.approx(value, abs=2e-4)
    assert sum(pair[0] for pair in DATA["dense"]) / 4 == pytest.approx(0.7069, abs=2e-4)


@pytest.mark.parametrize("name", DATA["tables"])
def test_rows_are_methods_of_ours(name):
    for row in DATA["tables"][name]["rows"]:
        make_method(row["method"], row["rate"], variant=row.get("variant"), compat="thesis", **row.get("params", {}))
        assert all(0 < value < 1 for pair in row["published"] for value in pair)


def run(*arguments, cwd):
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, SCRIPT, "--model", "demo", "--limit", "1", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=environment)


def test_a_run_on_bundled_images(tmp_path):
    done = run("--datasets", "bundled-photos", "--tables", "4.10", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Table 4.10, layers last5" in done.stdout and "PiToMe-v1 .7" in done.stdout
    assert "1 images taken from" in run("--datasets", "bundled-photos", "--tables", "4.10", cwd=tmp_path).stderr


def test_missing_data_are_named(tmp_path):
    done = run("--datasets", "coift", "--root", tmp_path / "nowhere", cwd=tmp_path)
    assert done.returncode == 5 and "COIFT" in done.stderr and "Traceback" not in done.stderr
    assert run("--tables", "9.9", cwd=tmp_path).returncode == 2
