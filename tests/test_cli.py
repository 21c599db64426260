"""The command line: lean, documented, and clear about what went wrong (message, exit code, nothing left behind)."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from bench_files import folder_of, outer_product

from structsam_export import cli as command_line

HEAVY = ("torch", "numpy", "onnx", "onnxruntime", "tensorrt", "tensorrt_rtx", "polygraphy", "segment_anything", "PIL")
ROOT = Path(__file__).parents[1]


@pytest.fixture
def command(monkeypatch, capsys):
    """Run the command in this process; returns (exit code, stdout, stderr)."""

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["structsam-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            command_line.main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


@pytest.mark.parametrize("arguments", [["--help"], ["export", "--help"], ["methods", "--json"]])
def test_help_and_methods_load_nothing_heavy(arguments):
    code = (
        "import sys; from structsam_export import cli; sys.argv = ['x', *sys.argv[1:]]\n"
        "try: cli.main()\n"
        f"except SystemExit: pass\nprint(sorted(set({HEAVY!r}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code, *arguments], capture_output=True, text=True)
    assert done.stderr.strip() == "[]", done.stderr


def test_every_command_is_in_the_documentation():
    text = "".join(path.read_text() for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md")))
    for name, command in command_line.cli.commands.items():
        assert f"structsam-export {name}" in text, f"no page mentions 'structsam-export {name}'"
        assert command.help and "Example:" in command.help


def test_methods_json_lists_the_registry(command):
    from structsam_export.methods import METHODS

    code, out, _ = command("methods", "--json")
    assert code == 0
    assert [row["name"] for row in json.loads(out)] == list(METHODS)


def test_methods_are_shown_against_hosts(command):
    """A host's own answer, and every pair once."""
    from structsam_export.hosts import HOSTS
    from structsam_export.hosts.tiny_vit import TinyViT

    _, out, _ = command("methods", "--json")
    rows = {row["name"]: {host["host"]: host for host in row["hosts"]} for row in json.loads(out)}
    assert all(set(hosts) == set(HOSTS) for hosts in rows.values())
    assert rows["tome"]["TinyViT"] == {"host": "TinyViT", "state": "refused", "why": TinyViT().refusal("tome")}
    assert rows["none"]["TinyViT"]["state"] == "supported"
    assert rows["sparsesam"]["HQImageEncoder"]["state"] == "supported"
    assert rows["tome"]["HQImageEncoder"] == {"host": "HQImageEncoder", "state": "ours", "why": None}
    _, out, _ = command("methods")
    assert "Refused by TinyViT: TinyViT has a convolution" in " ".join(out.split())


def test_doctor_names_every_backend(command):
    code, out, _ = command("doctor", "--json")
    facts = json.loads(out)
    assert code == 0
    assert set(facts["backends"]) == {"tensorrt", "tensorrt-rtx", "openvino", "onnxruntime"}
    assert facts["cpu"] and facts["cores"] > 0
    for row in facts["backends"].values():
        assert row["installed"] or "pip install" in row["to_do"]
    assert "f32" in facts["backends"]["openvino"]["can"]


def test_doctor_warns_of_two_onnx_runtimes(command, monkeypatch):
    found = {"onnxruntime": "1.0", "onnxruntime-gpu": "1.0"}
    monkeypatch.setattr("structsam_export.doctor.versions", lambda: found)
    code, out, _ = command("doctor")
    assert code == 0 and "Problem: onnxruntime and onnxruntime-gpu are both installed" in " ".join(out.split())


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--method", "structsan"], 2, "Did you mean 'structsam'"),
        (["--rate", "0.9"], 2, "0.75"),
        (["--rate", "-0.1"], 2, "out of range"),
        (["--variant", "diagonal"], 2, "cell, bsm"),
        (["--layers", "0,99"], 2, "blocks 0 to 7"),
        (["--layers", "first"], 2, "all, last5, global"),
        (["--model", "vit_x"], 2, "vit_b"),
        (["--precision", "int8"], 2, "auto, fp16, fp32, bf16"),
        (["--form", "tensorrt"], 2, "portable, attention, ort-cpu"),
        (["--form", "attention"], 2, "--opset 23"),
        (["--form", "attention", "--opset", "23", "--precision", "fp32"], 2, "FP16 and BF16 only"),
        (["--form", "attention", "--opset", "23", "--precision", "fp32", "--backend", "tensorrt"], 2, "--backend none"),
        (["--form", "ort-cpu", "--precision", "fp16"], 2, "computes in FP32"),
        (["--form", "ort-cpu", "--backend", "tensorrt-rtx"], 2, "Pass another --form"),
        (["trace", "--form", "ort-cpu", "--precision", "bf16"], 2, "computes in FP32"),
        (["trace", "--form", "attention", "--opset", "22"], 2, "--opset 23"),
        (["--backend", "cuda"], 2, "tensorrt-rtx"),
        (["--batch", "0"], 2, "--batch"),
        (["--opset", "11"], 2, "18 to 23"),
        (["--rate", "half"], 2, "Cannot read rate 'half'"),
        (["--frobnicate"], 2, "No such option"),
        (["--checkpoint", "missing.pth"], 5, "missing.pth"),
        (["--image", "missing.jpg"], 5, "missing.jpg"),
        (["build", "nowhere"], 5, "manifest.json is missing"),
        (["validate", "nowhere"], 5, "manifest.json is missing"),
    ],
)
def test_bad_requests(command, tmp_path, monkeypatch, arguments, code, message):
    monkeypatch.chdir(tmp_path)
    status, out, err = command(*arguments)
    assert (status, out) == (code, "")
    assert message in err
    assert "Traceback" not in err
    assert list(tmp_path.rglob("*")) in ([], [tmp_path / "engines"])


def test_backend_that_is_not_installed(command, tmp_path, monkeypatch):
    monkeypatch.setattr("structsam_export.backends.base.Backend.installed", lambda self: False)
    status, _, err = command("--backend", "tensorrt", "--output", tmp_path / "out")
    assert status == 4
    assert "pip install" in err


def test_a_graph_for_onnx_runtime_is_not_built(command, tmp_path, monkeypatch):
    """Whatever is installed; and nothing is asked of it."""
    folder = folder_of(tmp_path / "mine", outer_product(4, 4), precision="fp32", form="ort-cpu")
    before = {p.name: p.read_bytes() for p in folder.iterdir()}
    status, out, err = command("build", folder, "--backend", "tensorrt-rtx")
    assert (status, out) == (2, "")
    assert "which tensorrt-rtx does not build. Export without --form ort-cpu" in " ".join(err.split())
    assert {p.name: p.read_bytes() for p in folder.iterdir()} == before


def test_no_backend_is_fine_for_onnx_runtime(command, tmp_path):
    """And no advice to install one."""
    folder = folder_of(tmp_path / "mine", outer_product(4, 4), precision="fp32", form="ort-cpu")
    status, _, err = command("build", folder, "--backend", "none")
    assert status == 0
    assert "No engine built" not in err


def test_a_trace_may_be_of_what_no_backend_builds(command, tmp_path, monkeypatch):
    """Stage trace has no --backend to say so."""
    asked = []
    monkeypatch.setattr(
        "structsam_export.pipeline.trace_only", lambda config, output, force: asked.append(config) or output
    )
    arguments = ("--form", "attention", "--opset", "23", "--precision", "fp32", "--output", tmp_path / "out")
    assert command("trace", *arguments)[0] == 0
    assert [(c.form, c.opset, c.precision, c.backend) for c in asked] == [("attention", 23, "fp32", "none")]


def test_unreadable_photo(command, tmp_path):
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"not a photo")
    status, _, err = command("--image", photo, "--output", tmp_path / "out")
    assert status == 5
    assert "photo.jpg" in err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", b"PK\x03\x04 cut off"])
def test_corrupt_checkpoint(command, tmp_path, content):
    checkpoint = tmp_path / "weights.pth"
    checkpoint.write_bytes(content)
    status, _, err = command("--model", "demo", "--checkpoint", checkpoint, "--output", tmp_path / "out")
    assert status == 5
    assert "weights.pth" in err
    assert sorted(p.name for p in tmp_path.iterdir()) == ["weights.pth"]


def test_output_that_is_not_ours_is_never_replaced(command, tmp_path):
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("years of work")
    for extra, hint in (([], "--force"), (["--force"], "not an output folder")):
        status, _, err = command("--output", tmp_path / "thesis", *extra)
        assert status == 2
        assert hint in err
    assert (tmp_path / "thesis" / "chapter1.tex").read_text() == "years of work"


def test_output_below_a_file_cannot_be_written(command, tmp_path):
    (tmp_path / "file").write_text("")
    status, _, err = command("--output", tmp_path / "file" / "out")
    assert status == 4
    assert "--output" in err


def test_too_little_space_is_noticed_before_the_work(command, tmp_path, monkeypatch):
    usage = type("Usage", (), {"free": 1_000_000})()
    monkeypatch.setattr("structsam_export.files.shutil.disk_usage", lambda place: usage)
    status, _, err = command("--output", tmp_path / "out", "--backend", "none")
    assert status == 4
    assert "GB free" in err
    assert list(tmp_path.iterdir()) == []


def test_a_swallowed_interrupt_is_raised_again(monkeypatch):
    """Libraries with bare excepts may catch Ctrl-C; the stage they run in ends with it all the same."""
    from structsam_export import console

    monkeypatch.setattr(console, "_interrupted", False)
    with pytest.raises(KeyboardInterrupt), console.stage("work"), contextlib.suppress(BaseException):
        console.interrupt()


def test_interrupted_run_leaves_nothing(tmp_path):
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        [sys.executable, "-m", "structsam_export", "--output", str(tmp_path / "out"), "--backend", "none"],
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    )
    deadline = time.time() + 120
    while not list(tmp_path.glob(".out.partial-*")) and time.time() < deadline:
        time.sleep(0.1)
    assert list(tmp_path.glob(".out.partial-*")), "the run never started writing"
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == 130
    assert "Interrupted" in err
    assert list(tmp_path.iterdir()) == []
