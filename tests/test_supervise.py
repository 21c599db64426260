"""The process that watches commands: deaths, hangs, memory and signals of its child end in sentences."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import pytest
from bench_files import folder_of, outer_product

from structsam_export import supervise
from structsam_export.errors import ArtifactError, OutputError

CHILD = """import json, os, signal, sys, time
sys.path[:] = json.loads(sys.argv.pop(1))
from pathlib import Path
from structsam_export import supervise
supervise.begin()
if sys.argv[1] == "code":
    sys.exit(int(sys.argv[2]))
with supervise.parsing("TensorRT", Path("evil.onnx")):
    if sys.argv[1] == "die":
        os.kill(os.getpid(), getattr(signal, sys.argv[2]))
    if sys.argv[1] == "grow":
        held = bytearray(300_000_000)
    time.sleep(60)
"""


@pytest.fixture
def child(monkeypatch):
    """What runs in place of the command line."""
    monkeypatch.setattr(supervise, "START", CHILD)


def test_exit_codes_pass(child):
    assert [supervise.supervised(["code", str(n)]) for n in (0, 2, 5)] == [0, 2, 5]


@pytest.mark.parametrize("name", ["SIGSEGV", "SIGABRT", "SIGKILL"])
def test_a_death_is_told(child, name):
    with pytest.raises(ArtifactError, match=f"{name}.* while TensorRT read evil.onnx"):
        supervise.supervised(["die", name])


def test_a_hang_is_ended(child, monkeypatch):
    monkeypatch.setenv(supervise.SWITCH, "1")
    with pytest.raises(ArtifactError, match="TensorRT read evil.onnx for too long"):
        supervise.supervised(["hang"])


def test_memory_is_limited(child, monkeypatch):
    monkeypatch.setattr(supervise, "memory_free", lambda: 200e6)
    with pytest.raises(ArtifactError, match="needs more than the 0.2 GB"):
        supervise.supervised(["grow"])
    with pytest.raises(OutputError, match="Not enough memory"):
        supervise.Watched(subprocess.Popen(["true"]), 0, -1.0).check()


def test_signals_reach_the_child(child):
    threading.Timer(1.0, os.kill, [os.getpid(), signal.SIGTERM]).start()
    assert supervise.supervised(["hang"]) == 128 + signal.SIGTERM


def test_the_child_dies_with_its_parent(tmp_path):
    """Also where the parent has no time to say so."""
    script = f"from structsam_export import supervise\nsupervise.START = {CHILD!r}\nsupervise.supervised(['hang'])"
    parent = subprocess.Popen([sys.executable, "-c", script])
    import psutil

    while not (children := psutil.Process(parent.pid).children()):
        time.sleep(0.05)
    time.sleep(1)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(children, timeout=10)
    assert alive == []


def test_which_commands_are_watched(monkeypatch):
    monkeypatch.delenv(supervise.SWITCH)
    assert supervise.wanted(["rewrite", "x"]) and supervise.wanted(["bench", "x.onnx"])
    assert not supervise.wanted(["trace"]) and not supervise.wanted(["rewrite", "--help"]) and not supervise.wanted([])
    monkeypatch.setenv(supervise.SWITCH, "0")
    assert not supervise.wanted(["rewrite", "x"])


def test_a_command_is_watched_as_a_whole(tmp_path):
    """A local function that calls itself, and a file that is no graph: exit 5, from the real command."""
    from hostile_graphs import bytes_of

    folder_of(tmp_path / "folder", outer_product(4, 4))
    path = tmp_path / "evil.onnx"
    path.write_bytes(bytes_of("a function calls itself"))
    environment = {**os.environ, supervise.SWITCH: "100"}
    line = [sys.executable, "-m", "structsam_export", "bench", str(path), "--runs", "1"]
    done = subprocess.run(line, capture_output=True, text=True, env=environment)
    assert done.returncode == 5 and "calls itself" in done.stderr and "Traceback" not in done.stderr
