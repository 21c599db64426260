"""Encoders run side by side, each in a process of its own. Never how long: only what is run, told, and left behind."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import tempfile
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import onnx
import psutil
import pytest
import torch
from bench_files import MiB, dense, folder_of, merged, outer_product, report_of, row, save

from structsam_export import benchmark
from structsam_export.benchmark import Worker, bench, table, variants_of
from structsam_export.benchmark.worker import inputs_of, load_eager
from structsam_export.errors import ArtifactError, UsageError
from structsam_export.files import sha256_of
from structsam_export.models import load_model

KEYS = {"name", "runner", "file", "p50", "p90", "p99", "n", "ratio", "ratio_paired", "peak_bytes", "activation_bytes"}
KEYS |= {"nodes", "macs", "seconds"}
CONDITIONS = {"cpu", "threads", "cores", "rounds", "reloaded", "platform", "versions"}
SMALL = outer_product(4, 4)
# A worker's own code, after something that goes wrong.
WORKER = "import sys; sys.path[:] = sys.argv[1:]; {}; from structsam_export.benchmark.worker import main; main()"


@pytest.fixture(autouse=True)
def no_process_is_left_behind():
    before = set(psutil.Process().children())
    yield
    assert set(psutil.Process().children()) <= before


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder of ours, two files and, below `temporary`, what a benchmark puts into the temp folder."""
    folder = tmp_path_factory.mktemp("bench")
    (folder / "temporary").mkdir()
    save(onnx.shape_inference.infer_shapes(dense()), folder / "dense.onnx")
    save(outer_product(7168, 7168), folder / "large.onnx")
    folder_of(folder / "merged", onnx.shape_inference.infer_shapes(merged()))
    return folder


@pytest.fixture(scope="module")
def report(place):
    """One report of three variants, with profiles."""
    targets = [f"stock={place / 'dense.onnx'}", str(place / "merged"), f"large={place / 'large.onnx'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tempfile, "tempdir", str(place / "temporary"))
        return bench(variants_of(targets, ["ort-cpu"]), rounds=3, threads=1, reload=False, profile=True)


def variant(path, runner="ort-cpu"):
    return variants_of([f"x={path}"], [runner])[0]


def test_a_report_has_its_keys(report):
    assert set(report) == {"schema", "conditions", "rows"} and report["schema"] == 1
    assert set(report["conditions"]) == CONDITIONS
    assert (report["conditions"]["threads"], report["conditions"]["rounds"]) == (1, 3)
    assert report["conditions"]["reloaded"] is False and report["conditions"]["versions"]["onnxruntime"]
    assert [r["name"] for r in report["rows"]] == ["stock", "merged", "large"]
    for found in report["rows"]:
        assert set(found) == {*KEYS, "profile"}
        assert found["n"] == len(found["seconds"]) == 3 and min(found["seconds"]) > 0
        assert 0 < found["p50"] <= found["p90"] <= found["p99"]
    assert json.loads(json.dumps(report)) == report


def test_ratios_are_to_the_first(report):
    first, second, _ = report["rows"]
    assert first["ratio"] == first["ratio_paired"] == 1.0
    # The middle one of three; milliseconds and seconds are both rounded to the microsecond.
    assert second["ratio"] == pytest.approx(sorted(second["seconds"])[1] / sorted(first["seconds"])[1], rel=5e-3)
    pairs = sorted(b / a for a, b in zip(first["seconds"], second["seconds"]))
    assert second["ratio_paired"] == pytest.approx(pairs[1], rel=5e-3)


def test_nodes_and_macs_are_the_files(report, place):
    stock, _, large = report["rows"]
    assert stock["nodes"] == len(onnx.load(str(place / "dense.onnx")).graph.node)
    assert large["macs"] == 7168 * 7168 and large["file"] == "large.onnx"


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="the system keeps no peak that can be reset")
def test_memory_is_that_of_the_run(report):
    stock, _, large = report["rows"]
    assert large["activation_bytes"] >= 7168 * 7168 * 4
    assert large["peak_bytes"] > large["activation_bytes"]
    assert stock["activation_bytes"] < 50 * MiB
    assert stock["peak_bytes"] < large["peak_bytes"]


def test_profiles(report, place):
    for found in report["rows"]:
        profile = found["profile"]
        assert profile["total_ms"] > 0
        assert sum(profile["parts_ms"].values()) == pytest.approx(profile["total_ms"], abs=0.01)
        assert sum(profile["ops_ms"].values()) == pytest.approx(profile["total_ms"], abs=0.05)
    stock, ours, _ = (r["profile"] for r in report["rows"])
    assert stock["merging_share"] == 0
    assert 0 < ours["merging_share"] < 1
    assert min(ours["parts_ms"].values()) > 0
    assert list((place / "temporary").iterdir()) == []


def test_a_report_is_a_table(report):
    head, body = table(report)
    assert {len(cells) for cells in body} == {len(head)}
    assert [cells[0] for cells in body] == ["stock", "merged", "large"]


def test_reloading_gives_the_same_keys(tmp_path):
    targets = [f"{name}={save(SMALL, tmp_path / f'{name}.onnx')}" for name in "ab"]
    found = bench(variants_of(targets, ["ort-cpu"]), rounds=1, threads=1, reload=True)
    assert found["conditions"]["reloaded"] is True
    assert [(set(r), r["n"]) for r in found["rows"]] == [(KEYS, 1)] * 2
    assert found["rows"][0]["ratio"] == 1 and min(r["activation_bytes"] for r in found["rows"]) >= 0


@pytest.mark.parametrize(("reload", "most"), [(True, 1), (False, 2)])
def test_reloading_holds_one_at_a_time(reload, most, tmp_path, monkeypatch):
    held, counts = [], []

    class Fake:
        memory = [{"peak": 1, "activations": 1}]

        def __init__(self, made, threads):
            held.append(made.name)
            counts.append(len(held))

        def __enter__(self):
            return self

        def __exit__(self, *_):
            held.pop()

        def run(self):
            return 1.0

    monkeypatch.setattr(benchmark, "Worker", Fake)
    targets = [f"{name}={save(SMALL, tmp_path / f'{name}.onnx')}" for name in "ab"]
    bench(variants_of(targets, ["ort-cpu"]), rounds=2, reload=reload)
    assert max(counts) == most and held == []


def test_what_does_not_fit_is_reloaded(tmp_path, monkeypatch):
    variants = [variant(save(SMALL, tmp_path / "a.onnx"))]
    (tmp_path / "a.onnx.data").write_bytes(bytes(1000))
    size = (tmp_path / "a.onnx").stat().st_size
    for free, fits in ((10 * (size + 999), False), (10 * (size + 1001), True)):
        monkeypatch.setattr(psutil, "virtual_memory", lambda free=free: SimpleNamespace(available=free))
        assert benchmark.fits(variants) is fits


def test_no_rounds_measure_nothing(tmp_path):
    with pytest.raises(UsageError, match="--runs"):
        bench([variant(save(SMALL, tmp_path / "a.onnx"))], rounds=0)


@pytest.fixture(scope="module")
def demo():
    return load_model("demo")


@pytest.fixture
def demo_folder(demo, tmp_path):
    """A folder that says the demo model was merged; eager runs need no more than that."""
    return folder_of(tmp_path / "ours", SMALL, sha256=demo.sha256, rate=0.5)


def test_eager_and_onnx_of_one_folder(demo_folder):
    found = bench(variants_of([str(demo_folder)], ["eager", "ort-cpu"]), rounds=1, threads=1, profile=True)
    eager, ort = found["rows"]
    assert (eager["name"], eager["file"]) == ("ours eager", "ours")
    assert (ort["name"], ort["file"]) == ("ours ort-cpu", "encoder.onnx")
    assert set(eager) == set(ort) == {*KEYS, "profile"}
    assert eager["profile"] is None and ort["profile"]["total_ms"] > 0


def test_eager_is_the_patched_model(demo, demo_folder):
    from structsam_export.folder import ExportFolder
    from structsam_export.job import Job

    spec = {"file": str(demo_folder), "threads": torch.get_num_threads()}
    call, _ = load_eager(spec)
    got = torch.as_tensor(call())
    image = torch.as_tensor(inputs_of({"image": (1, 3, 512, 512)})["image"])
    encoder = demo.sam.image_encoder
    with torch.no_grad():
        stock = encoder(image)
        with Job.prepare(ExportFolder.read(demo_folder).config).schedule.patched(encoder):
            want = encoder(image)
    assert torch.allclose(got, want, atol=1e-5)
    assert (got - stock).abs().max() > 1e-2


def test_eager_of_other_weights_is_refused(demo_folder):
    folder_of(demo_folder, SMALL, sha256="0" * 64, rate=0.5)
    with pytest.raises(ArtifactError, match="not the checkpoint"):
        load_eager({"file": str(demo_folder), "threads": torch.get_num_threads()})


def test_a_prompt_aware_encoder_gets_a_box_for_every_image():
    feed = inputs_of({"image": (2, 3, 96, 96), "boxes": (2, 4)})
    assert feed["image"].shape == (2, 3, 96, 96) and feed["boxes"].shape == (2, 4)
    assert (feed["boxes"][0] == feed["boxes"][1]).all() and 0 <= feed["boxes"].min() < feed["boxes"].max() <= 96


@pytest.mark.timeout(60)
def test_a_worker_may_say_as_much_as_it_likes(tmp_path, monkeypatch):
    """More than a pipe holds, which nobody would read while the worker runs."""
    monkeypatch.setattr(benchmark, "START", WORKER.format("print('warning\\n' * 50000, file=sys.stderr)"))
    with Worker(variant(save(SMALL, tmp_path / "a.onnx")), 1) as worker:
        assert worker.run() > 0


def test_what_libraries_print_is_no_answer(tmp_path, monkeypatch):
    """Also from C, which knows nothing of sys.stdout."""
    loud = "import onnxruntime as o, os; f = o.InferenceSession; "
    loud += "o.InferenceSession = lambda *a, **k: (os.write(1, b'hello\\n'), f(*a, **k))[1]"
    monkeypatch.setattr(benchmark, "START", WORKER.format(loud))
    with Worker(variant(save(SMALL, tmp_path / "a.onnx")), 1) as worker:
        assert worker.run() > 0


def test_workers_import_what_this_process_imports(tmp_path, monkeypatch):
    """Not what lies in the current folder, and also where the package was found by sys.path alone."""
    monkeypatch.delenv("PYTHONPATH", raising=False)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "onnxruntime.py").write_text("raise RuntimeError('a file of the user')")
    with Worker(variant(save(SMALL, tmp_path / "a.onnx")), 1) as worker:
        assert worker.run() > 0


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("sys.exit('no such library')", r"x stopped running: no such library \(exit code 1\)"),
        ("sys.exit(7)", "x stopped running: exit code 7"),
        ("import os; os.kill(os.getpid(), 9)", "out of memory.*--reload"),
    ],
)
def test_a_worker_that_dies(fault, message, tmp_path, monkeypatch):
    monkeypatch.setattr(benchmark, "START", WORKER.format(fault))
    with pytest.raises(ArtifactError, match=message):
        bench([variant(save(SMALL, tmp_path / "a.onnx"))], rounds=1)


def test_a_worker_that_cannot_load_is_ended(tmp_path, monkeypatch):
    """Even one that would stay although nobody asks it any more."""
    stays = 'import time; print(\'{"error": "no kernel"}\', flush=True); time.sleep(300)'
    monkeypatch.setattr(benchmark, "START", WORKER.format(stays))
    with pytest.raises(ArtifactError, match="x cannot be run: no kernel"):
        bench([variant(save(SMALL, tmp_path / "a.onnx"))], rounds=1)


def test_a_worker_that_dies_between_runs(tmp_path):
    """Its request is never read: neither asking nor closing may fail with a broken pipe."""
    with Worker(variant(save(SMALL, tmp_path / "a.onnx")), 1) as worker:
        worker.run()
        worker.process.kill()
        worker.process.wait()
        with pytest.raises(ArtifactError, match="out of memory"):
            worker.run()


def test_a_stopped_profile_leaves_no_file(tmp_path, monkeypatch):
    def stop(worker):
        assert list(temporary.rglob("*.json")), "the profiler writes elsewhere"
        raise KeyboardInterrupt

    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    monkeypatch.setattr(Worker, "run", stop)
    with pytest.raises(KeyboardInterrupt):
        benchmark.add_profiles([variant(save(SMALL, tmp_path / "a.onnx"))], [{}], 1)
    assert list(temporary.iterdir()) == []


@pytest.fixture
def command(in_process):
    """`structsam-export bench ...`; returns (exit code, stdout, stderr)."""
    return partial(in_process, "bench")


def test_command_prints_json_and_nothing_else(command, tmp_path):
    save(SMALL, tmp_path / "a.onnx")
    folder_of(tmp_path / "mine", SMALL)
    code, out, err = command("mine", "peer=a.onnx", "--runs", 2, "--threads", 1, "--json", "--plot", "bench.svg")
    found = json.loads(out)
    assert code == 0 and [r["name"] for r in found["rows"]] == ["mine", "peer"]
    assert found["conditions"]["rounds"] == 2 and [r["n"] for r in found["rows"]] == [2, 2]
    assert "2 variants, 2 rounds" in err
    assert "<svg" in (tmp_path / "bench.svg").read_text()


def test_command_prints_a_table(command, tmp_path, monkeypatch):
    made = report_of(row("first"), row("second [50 %]", ratio=0.5))
    asked = []
    monkeypatch.setattr(benchmark, "bench", lambda variants, **given: asked.append(given) or made)
    code, out, _ = command(save(SMALL, tmp_path / "a.onnx"), "--reload", "--profile")
    assert code == 0
    assert all(word in out for word in ("variant", "p50 ms", "second [50 %]", "0.500"))
    assert asked == [{"rounds": 7, "threads": None, "reload": True, "profile": True}]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "Missing argument"),
        (["a.onnx", "a.onnx"], 2, "Two targets"),
        (["a.onnx", "--runs", "0"], 2, "--runs"),
        (["a.onnx", "--threads", "0"], 2, "--threads"),
        (["a.onnx", "--runner", "ort"], 2, "Unknown runner 'ort'"),
        # Before any look at the targets, which may cost an export.
        (["nowhere", "--plot", "bench.gif"], 2, ".svg"),
        (["nowhere", "--plot", "missing/bench.png"], 2, "missing does not exist"),
        (["nowhere", "--baselines", "--runner", "ort-cpu", "--runner", "eager"], 2, "runner 'eager'"),
        (["a.onnx", "nowhere", "--baselines"], 5, "nowhere does not exist"),
        (["a.onnx", "--baselines"], 5, "output folder"),
        (["a.onnx", "--runner", "eager"], 5, "needs an export folder"),
        (["corrupt.onnx"], 5, "corrupt.onnx is no ONNX file"),
        (["foreign.onnx"], 5, "its inputs are pixels [1, 3, 96, 96]"),
        (["a.onnx", "--runner", "tensorrt-rtx"], 4, ""),
        (["a.onnx", "--runner", "ort-cuda"], 4, "onnxruntime-gpu"),
    ],
)
def test_command_refuses(command, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.setattr("structsam_export.backends.cuda._device", lambda: None)
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    save(SMALL, tmp_path / "a.onnx")
    save(outer_product(4, 4, name="pixels"), tmp_path / "foreign.onnx")
    (tmp_path / "corrupt.onnx").write_bytes(b"\x08\x07 not a graph")
    before = {p: sha256_of(p) for p in tmp_path.iterdir()}
    status, out, err = command(*arguments)
    assert (status, out) == (code, "")
    assert message in " ".join(err.split())
    assert "Traceback" not in err
    assert {p: sha256_of(p) for p in tmp_path.iterdir()} == before


def test_ctrl_c_ends_the_workers(tmp_path):
    for name in "ab":
        save(SMALL, tmp_path / f"{name}.onnx")
    process = subprocess.Popen(
        [sys.executable, "-m", "structsam_export", "bench", tmp_path / "a.onnx", tmp_path / "b.onnx", "--json"]
        + ["--runs", "10000000", "--threads", "1"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    workers, deadline = [], time.time() + 60
    while len(workers) < 2 and time.time() < deadline and process.poll() is None:
        time.sleep(0.05)
        workers = psutil.Process(process.pid).children()
    assert len(workers) == 2, process.communicate(timeout=60)
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert (process.returncode, out) == (130, ""), err
    assert "Interrupted" in err
    assert not psutil.wait_procs(workers, timeout=30)[1]
