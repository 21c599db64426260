"""The command `sweep`: figures as `evaluate` gives them, resumable, with picture, page and CSV."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest
import torch
from evaluation_sets import write_folder
from PIL import Image

from structsam_export.config import ExportConfig
from structsam_export.evaluate import command as evaluation
from structsam_export.sweep import spread
from structsam_export.sweep.rows import rows_of

GRID = ("--methods", "structsam:cell,tome", "--rates", "0.5,0.7")


@pytest.fixture
def run(in_process):
    """Run `sweep`; returns (exit code, stdout, stderr in one line)."""

    def run(*arguments):
        code, out, err = in_process("sweep", *arguments)
        return code, out, " ".join(err.split())

    return run


@pytest.fixture
def place(tmp_path):
    return write_folder(tmp_path / "discs", 3)


@pytest.fixture
def one_thread():
    """Results of different numbers of threads differ in the last digits."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def close(intervals):
    """Intervals by metric, equal up to rounding."""
    return intervals and {metric: pytest.approx(value) for metric, value in intervals.items()}


def test_figures_files_and_words(run, place, one_thread):
    files = ("--plot", "made.png", "--csv", "made.csv", "--markdown", "made.md")
    code, out, err = run("--dataset", place, *GRID, "--jobs", 2, *files, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert [row["name"] for row in report["rows"]] == [
        "dense",
        "structsam-cell-r50",
        "structsam-cell-r70",
        "tome-alternate-r50",
    ]
    assert "goes to rate 0.5 only" in err and ("Largest saving" in err or "No configuration" in err)
    folder = Path("evaluations/discs-demo-sweep")
    assert Path(report["output"]) == folder and json.loads((folder / "report.json").read_text()) == report
    assert all(row["latency"]["ratio"] > 0 for row in report["rows"]) and report["latency"]["runs"] > 1

    config = ExportConfig(method="tome", variant="alternate", rate=0.5)
    alone = evaluation.run(config, None, str(place))["rows"]
    for expected, row in zip(alone, (report["rows"][0], report["rows"][3])):
        assert row["groups"][""]["iou"] == pytest.approx(expected["iou"])
        assert row["mean"]["difference"] == close(expected["difference"])

    with Image.open("made.png") as picture:
        assert picture.width > 500
    with Path("made.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert len(lines) == 2 * len(report["rows"]) and lines[0]["set"] == "discs"
    assert float(lines[2]["macs_ratio"]) == report["rows"][1]["macs_ratio"] < 1
    page = Path("made.md").read_text()
    assert page.startswith("# Accuracy") and "![mIoU lost against MACs](made.png)" in page
    assert f"structsam-export sweep --dataset {place}" in page and "| structsam-cell-r70 |" in page


def test_interrupted_and_resumed_gives_the_same_report(run, place, monkeypatch):
    code, whole, err = run("--dataset", place, *GRID, "--output", "whole", "--no-latency", "--json")
    assert code == 0, err
    import structsam_export.evaluate as package

    real, done = package.scored, []

    def scored(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments)
        return real(*arguments)

    for jobs, kept in ((1, 2), (2, None)):
        done.clear()
        monkeypatch.setattr(package, "scored", scored)
        where = ("--dataset", place, *GRID, "--output", f"parts{jobs}", "--no-latency", "--jobs", jobs, "--json")
        code, out, err = run(*where)
        assert (code, out) == (130, "") and f"kept in parts{jobs}" in err
        monkeypatch.setattr(package, "scored", real)
        code, resumed, err = run(*where)
        assert code == 0 and (kept is None or f"{kept} images taken from" in err)
        assert {**json.loads(resumed), "output": ""} == {**json.loads(whole), "output": ""}


def test_further_configurations_and_latency_join(run, place, monkeypatch):
    assert run("--dataset", place, "--methods", "tome", "--rates", "0.5", "--output", "out", "--limit", 1)[0] == 0
    times = json.loads(Path("out/latency.json").read_text())
    code, out, _ = run("--dataset", place, "--methods", "tome", "--rates", "0.5", "--output", "out", "--limit", 1)
    assert code == 0 and json.loads(Path("out/latency.json").read_text()) == times and "tome-alternate-r50" in out
    code, out, err = run("--dataset", place, "--methods", "tome", "--rates", "0.3,0.5", "--output", "out", "--limit", 1)
    assert code == 0, err
    assert set(json.loads(Path("out/latency.json").read_text())["seconds"]) > set(times["seconds"])
    code, _, err = run("--dataset", place, "--methods", "tome", "--output", "out", "--prompt", "point")
    assert code == 2 and "(prompt)" in err


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_corrupt_image(run, place, jobs):
    (place / "images" / "s1.png").write_bytes(b"no image")
    where = ("--dataset", place, "--methods", "tome", "--rates", "0.5", "--no-latency", "--jobs", jobs)
    code, out, err = run(*where)
    assert (code, out) == (5, "") and "s1.png" in err and "--skip-bad" in err
    code, out, err = run(*where, "--skip-bad", "--json")
    report = json.loads(out)
    assert code == 0 and [bad["name"] for bad in report["skipped"]] == ["s1"]
    assert report["groups"][""]["images"] == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--methods", "structsma"], "Did you mean 'structsam'"),
        (["--methods", "tome", "--rates", "0.7"], "Nothing is left to try"),
        (["--rates", "many"], "Cannot read rate"),
        (["--layers", "0+99", "--methods", "tome"], "Unknown layer 99"),
        (["--protocol", "hq"], "Unknown protocol 'hq'"),
        (["--plot", "made.gif"], "--plot FILE.png"),
        (["--csv", "nowhere/made.csv"], "--csv"),
        (["--markdown", "nowhere/made.md"], "--markdown"),
        (["--loss", "2"], "--loss"),
    ],
)
def test_bad_requests(run, place, arguments, message):
    code, out, err = run("--dataset", place, *arguments)
    assert (code, out) == (2, "") and message in err
    assert not Path("evaluations").exists()


def test_a_limit_is_spread_over_each_set():
    from structsam_export.datasets import open_dataset

    samples = open_dataset("bundled").samples()
    chosen = spread(samples, 4)
    counts = {}
    for sample in chosen:
        counts.setdefault(sample.group, []).append(sample.name)
    assert {group: len(names) for group, names in counts.items()} == {
        "bundled-photos": 3,
        "bundled-coins": 1,
        "bundled-nuclei": 1,
        "bundled-composites": 4,
        "bundled-thin": 4,
    }
    assert counts["bundled-composites"] == [f"composites-{i:03d}" for i in (0, 12, 24, 36)]
    assert {s.name for s in spread(samples, None)} == {s.name for s in samples}


def test_sets_are_never_pooled():
    """A set of one image counts as much as one of three, and each has its own row."""
    from structsam_export.models import load_model

    def image(group, fast):
        each = {m: dict.fromkeys(("iou", "boundary_iou", "dice"), v) for m, v in (("dense", 0.9), (name, fast))}
        return {"name": "a", "group": group, "objects": 1, "box_filled": 0.5, "scores": each}

    from structsam_export.sweep.grid import jobs_of

    loaded = load_model("demo")
    jobs, _ = jobs_of([ExportConfig(method="tome", rate=0.5)], loaded)
    name = "tome-r50"
    found = rows_of([image("a", 0.8)] * 3 + [image("b", 0.9)], jobs, loaded.geometry, None)
    assert found[1]["mean"]["difference"]["iou"]["mean"] == pytest.approx(-0.05)
    assert found[1]["groups"]["a"]["difference"]["iou"]["mean"] == pytest.approx(-0.1)
    assert found[0]["front"] == {"macs": True, "latency": None} and found[1]["front"]["macs"]
