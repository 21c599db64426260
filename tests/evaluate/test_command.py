"""The command: what it prints and writes, how it resumes, and how it says no."""

from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from demo_exports import demo_export
from evaluation_sets import write_folder

from structsam_export.evaluate import command as evaluation
from structsam_export.evaluate.command import decimals, spread
from structsam_export.folder import ExportFolder
from structsam_export.pipeline import rewrite_folder

KEYS = {"schema", "dataset", "protocol", "prompt", "runner", "images", "objects", "skipped", "bootstrap", "rows"}


@pytest.fixture
def run(in_process):
    """Run `evaluate`; returns (exit code, stdout, stderr)."""
    return partial(in_process, "evaluate")


@pytest.fixture
def place(tmp_path):
    return write_folder(tmp_path / "discs", 3)


def test_a_table_json_csv_and_files(run, place, tmp_path):
    code, out, err = run("--dataset", place, "--rate", "0.5", "--csv", "rows.csv", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert set(report) == KEYS | {"per_image", "output"}
    assert (report["dataset"], report["images"], report["objects"], report["skipped"]) == ("discs", 3, 4, [])
    assert [r["name"] for r in report["rows"]] == ["dense", "structsam-r50"]
    assert report["rows"][0]["iou"]["mean"] > 0.9
    folder = Path("evaluations/discs-demo-structsam-r50-fp32")
    assert Path(report["output"]) == folder and json.loads((folder / "report.json").read_text()) == report
    assert sorted(p.name for p in (folder / "images").iterdir()) == ["s0.json", "s1.json", "s2.json"]
    with Path("rows.csv").open(newline="") as file:
        lines = list(csv.DictReader(file))
    assert [(line["image"], line["model"]) for line in lines][:3] == [
        ("s0", "dense"),
        ("s0", "structsam-r50"),
        ("s1", "dense"),
    ]
    assert float(lines[0]["iou"]) == report["per_image"][0]["scores"]["dense"]["iou"]
    code, out, err = run("--dataset", place, "--rate", "0.5")
    assert code == 0 and "3 images taken from" in err
    mean = decimals(report["rows"][1]["iou"]["mean"])
    assert "structsam-r50" in out and mean in out and "box filled" in out
    assert not list(tmp_path.rglob(".*partial*"))


def test_interrupted_and_resumed_gives_the_same_report(run, place, monkeypatch):
    code, whole, err = run("--dataset", place, "--method", "tome", "--output", "whole", "--json")
    assert code == 0, err
    import structsam_export.evaluate as package

    real, done = package.scored, []

    def scored(*arguments):
        if len(done) == 2:
            raise KeyboardInterrupt
        done.append(arguments)
        return real(*arguments)

    monkeypatch.setattr(package, "scored", scored)
    code, out, err = run("--dataset", place, "--method", "tome", "--output", "parts", "--json")
    assert (code, out) == (130, "")
    assert "kept in parts" in err and "nothing was left behind" not in err
    monkeypatch.setattr(package, "scored", real)
    code, resumed, err = run("--dataset", place, "--method", "tome", "--output", "parts", "--json")
    assert code == 0 and "2 images taken from parts" in err
    assert {**json.loads(resumed), "output": ""} == {**json.loads(whole), "output": ""}


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_killed_process_keeps_whole_files(place, tmp_path, number):
    """The real thing: a process that is told to stop after its first image."""
    arguments = ["evaluate", "--dataset", str(place), "--method", "none", "--output", str(tmp_path / "out")]
    process = subprocess.Popen(
        [sys.executable, "-m", "structsam_export", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    deadline, images = time.time() + 120, tmp_path / "out" / "images"
    while not (images / "s0.json").exists() and time.time() < deadline and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(number)
    _, err = process.communicate(timeout=120)
    if process.returncode != 0:  # a fast machine may be done before the signal comes
        assert process.returncode == 130, err
        assert "kept in" in err
    for path in images.iterdir():
        assert path.suffix == ".json" and json.loads(path.read_text())["scores"]["dense"]


def test_other_settings_do_not_mix(run, place):
    assert run("--dataset", place, "--method", "none", "--output", "out", "--limit", 1)[0] == 0
    assert run("--dataset", place, "--method", "none", "--output", "out", "--limit", 2)[0] == 0
    code, out, err = run("--dataset", place, "--method", "none", "--prompt", "point", "--output", "out")
    assert (code, out) == (2, "") and "(prompt)" in err and "--force" in err
    assert len(list(Path("out/images").iterdir())) == 2
    assert run("--dataset", place, "--method", "none", "--prompt", "point", "--output", "out", "--force")[0] == 0
    assert len(list(Path("out/images").iterdir())) == 3


def test_a_corrupt_image_is_named_and_only_left_out_on_request(run, place):
    (place / "images" / "s1.png").write_bytes(b"no image")
    code, out, err = run("--dataset", place, "--method", "none")
    assert (code, out) == (5, "") and "s1.png" in err and "--skip-bad" in err
    code, out, err = run("--dataset", place, "--method", "none", "--skip-bad", "--json")
    report = json.loads(out)
    assert code == 0 and report["images"] == 2 and [bad["name"] for bad in report["skipped"]] == ["s1"]
    assert "skipped" in err and "s1.png" in err


def test_an_empty_folder(run, tmp_path):
    for part in ("images", "masks"):
        (tmp_path / "empty" / part).mkdir(parents=True)
    code, _, err = run("--dataset", "./empty")
    assert code == 5 and "No pictures" in err


def test_masks_that_do_not_fit(run, place):
    from PIL import Image

    Image.new("L", (5, 7), 255).save(place / "masks" / "s1_0.png")
    (place / "masks" / "s1_1.png").unlink()
    code, _, err = run("--dataset", place, "--method", "none")
    assert code == 5 and "s1_0.png is 5 x 7 pixels" in err and "--skip-bad" in err
    (place / "masks" / "s1_0.png").unlink()
    code, _, err = run("--dataset", place, "--method", "none", "--skip-bad")
    assert code == 5 and "without a mask" in err and "s1.png" in err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--protocol", "hq"], 2, "Unknown protocol 'hq'"),
        (["--prompt", "text"], 2, "Unknown prompt 'text'"),
        (["--runner", "gpu"], 2, "Unknown runner 'gpu'"),
        (["--runner", "ort"], 2, "Export first"),
        (["--method", "structsma"], 2, "Did you mean 'structsam'"),
        (["--rate", "0.9"], 2, "out of range"),
        (["--limit", "0"], 2, "--limit"),
        (["--csv", "nowhere/rows.csv"], 2, "Make it"),
        (["--spectral", "--csv", "rows.csv"], 2, "Leave --csv away"),
        (["--spectral", "--protocol", "samhq"], 2, "Leave --protocol away"),
        (["--spectral", "--method", "sparsesam"], 2, "merge tokens"),
        (["nowhere"], 5, "manifest.json is missing"),
        (["nowhere", "--rate", "0.5"], 2, "Leave --rate away"),
        (["nowhere", "--param", "margin=1"], 2, "Leave --param away"),
    ],
)
def test_bad_requests(run, place, arguments, code, message):
    status, out, err = run("--dataset", place, *arguments)
    assert (status, out) == (code, "")
    assert message in " ".join(err.split()) and "Traceback" not in err
    assert not Path("evaluations").exists()


def test_engines_need_a_machine_that_runs_them(run, place, monkeypatch):
    monkeypatch.setattr("structsam_export.backends.base.Backend.runs_here", lambda self: False)
    code, _, err = run("anything", "--dataset", place, "--runner", "engine")
    assert code == 4 and "needs a GPU or OpenVINO" in err and "pip install" in err
    monkeypatch.setattr("structsam_export.backends.cuda._device", lambda: None)
    code, _, err = run("anything", "--dataset", place, "--runner", "tensorrt-rtx")
    assert code == 4 and "no CUDA device" in err


def test_spectral(run, place):
    code, out, err = run("--dataset", place, "--spectral", "--rate", "0.5", "--layers", "0", "--limit", 1, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert (report["images"], report["rate"], report["layers"], report["left_out"]) == (1, 0.5, [0], [])
    assert report["rows"][0]["name"].startswith("structsam") and len(report["rows"]) == 7
    assert all(row["window"] > 0 and row["global"] is None for row in report["rows"])


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """The demo model with merging in FP32, as traced and rewritten ONNX: no engines, no report."""
    folder = Path(shutil.copytree(demo_export(), tmp_path_factory.mktemp("exported") / "demo"))
    return rewrite_folder(folder).path


def test_onnx_is_as_good_as_eager(run, place, exported):
    reports = {}
    for runner in ("eager", "ort"):
        code, out, err = run(exported, "--dataset", place, "--runner", runner, "--limit", 2, "--json")
        assert code == 0, err
        reports[runner] = json.loads(out)
    assert [r["name"] for r in reports["ort"]["rows"]] == ["dense", "structsam-r50 ort"]
    assert reports["eager"]["rows"][0] == reports["ort"]["rows"][0]
    for metric in ("iou", "boundary_iou", "dice"):
        eager, ort = (reports[r]["rows"][1][metric]["mean"] for r in ("eager", "ort"))
        assert ort == pytest.approx(eager, abs=1e-4)


def test_the_checkpoint_may_have_moved(run, place, exported, tmp_path):
    import shutil

    from structsam_export.models import load_model

    folder = shutil.copytree(exported, tmp_path / "elsewhere")
    made = ExportFolder.read(folder)
    made.manifest.config = replace(made.config, checkpoint="gone.safetensors")
    made.write()
    code, _, err = run(folder, "--dataset", place, "--limit", 1)
    assert code == 5 and "gone.safetensors" in err
    where = load_model("demo").checkpoint
    code, out, err = run(folder, "--dataset", place, "--limit", 1, "--checkpoint", where, "--json")
    assert code == 0, err
    assert [r["name"] for r in json.loads(out)["rows"]] == ["dense", "structsam-r50 ort"]


def test_the_default_precision_is_rounded_to(run, place, exported, tmp_path):
    """FP16 on ONNX Runtime is a rounding copy: near FP32, yet not equal to it."""
    import shutil

    from structsam_export.pipeline import precision_stage

    folder = shutil.copytree(exported, tmp_path / "fp16")
    made = ExportFolder.read(folder)
    (folder / "encoder.onnx").rename(folder / "encoder.fp32.onnx")
    made.manifest.files["encoder.fp32.onnx"] = made.manifest.files.pop("encoder.onnx")
    made.manifest.config = replace(made.config, precision="fp16", images=(str(place / "images" / "s0.png"),))
    precision_stage(made)
    code, out, err = run(folder, "--dataset", place, "--limit", 1, "--json")
    assert code == 0, err
    rows = json.loads(out)["rows"]
    assert [r["name"] for r in rows] == ["dense", "structsam-r50-fp16 ort"]
    code, out, _ = run(exported, "--dataset", place, "--limit", 1, "--json")
    full = json.loads(out)["rows"][1]
    assert rows[1]["iou"]["mean"] == pytest.approx(full["iou"]["mean"], abs=0.02)


def test_a_changed_file_is_refused(run, place, exported, tmp_path):
    import shutil

    copy = shutil.copytree(exported, tmp_path / "copy")
    (copy / "decoder.onnx").write_bytes(b"another")
    code, _, err = run(copy, "--dataset", place)
    assert code == 5 and "was changed" in err


def test_engines_draw_what_onnx_draws(run, place, exported, tmp_path):
    """OpenVINO's, which run here; and only after they were built."""
    import shutil

    from structsam_export.pipeline import build_folder

    folder = shutil.copytree(exported, tmp_path / "copy")
    code, _, err = run(folder, "--dataset", place, "--runner", "engine", "--limit", 1)
    assert code == 5 and "no engines for this machine" in " ".join(err.split())
    build_folder(folder, "openvino", "f32")
    found = {}
    for runner in ("ort", "engine", "openvino"):
        code, out, err = run(folder, "--dataset", place, "--runner", runner, "--limit", 2, "--json")
        assert code == 0, err
        found[runner] = json.loads(out)["rows"][1]
    assert found["engine"]["name"] == "structsam-r50 engine"
    for runner in ("engine", "openvino"):
        assert found[runner]["iou"]["mean"] == pytest.approx(found["ort"]["iou"]["mean"], abs=1e-4)


def test_prompt_aware_models_run_once_a_prompt(run, place):
    code, out, err = run("--dataset", place, "--prompt-aware", "--rate", "0.6", "--limit", 2, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["objects"] == 3 and report["rows"][1]["iou"]["mean"] > 0.9


def test_numbers_as_text():
    assert [decimals(v) for v in (0.12345, 1.0, 0.0)] == [".1235", "1.0000", ".0000"]
    assert spread({"mean": -0.002, "low": -0.01, "high": 0.0061}, "+") == "-.0020 [-.0100, +.0061]"
    assert spread({"mean": 0.5, "low": None, "high": None}) == ".5000"


def test_groups_have_their_own_rows():
    rows = [
        {
            "group": group,
            "images": 2,
            "name": "dense",
            "difference": None,
            **{m: dict.fromkeys(("mean", "low", "high"), 0.5) for m in ("iou", "boundary_iou", "dice", "box_filled")},
        }
        for group in ("coins", "nuclei")
    ]
    head, body = evaluation.table({"rows": rows})
    assert head[0] == "set (images)" and [line[0] for line in body] == ["coins (2)", "nuclei (2)"]
    head, body = evaluation.table({"rows": rows[:1]})
    assert head[0] == "model" and {len(line) for line in body} == {len(head)}


def test_the_bundled_set(run):
    """The default: every part of the set by itself."""
    code, out, err = run("--method", "none", "--limit", 5, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["dataset"] == "bundled" and report["images"] == 5
    assert len({row["group"] for row in report["rows"]}) == len(report["rows"]) > 1
