"""Small random-weight SAMs, so that no test needs a download."""

from __future__ import annotations

import sys

import pytest
import shared_traces
from tiny_model import save as save_tiny
from tiny_model import save_shared, tiny_encoder


@pytest.fixture(autouse=True)
def traces_are_shared():
    """Exports of this test take their traces from the cache of the whole run; tracing is left out of coverage."""
    with shared_traces.sharing():
        yield


@pytest.fixture(autouse=True)
def one_process(monkeypatch):
    """Commands run in the process of the test, where its changes hold; what watches them has tests of its own."""
    monkeypatch.setenv("STRUCTSAM_SUPERVISE", "0")


@pytest.fixture
def tiny_model(monkeypatch, tmp_path_factory):
    """Registers the model "tiny" for `--model`; path of its weights."""
    return registered(monkeypatch, "tiny", "tiny_model:build", save_tiny, tmp_path_factory.getbasetemp())


@pytest.fixture
def shared_model(monkeypatch, tmp_path_factory):
    """Registers the model "shared", whose encoder is `tiny_encoder`'s; path of its weights."""
    return registered(monkeypatch, "shared", "tiny_model:build_shared", save_shared, tmp_path_factory.getbasetemp())


def registered(monkeypatch, name, architecture, save, folder):
    """Make a model known by its name; its weights are written once."""
    from structsam_export import models

    monkeypatch.setitem(models.ARCHITECTURES, name, architecture)
    monkeypatch.setitem(models.MODELS, name, models.ModelSpec(name, f"{name} SAM", name, "sam"))
    path = folder / f"{name}.pth"
    return path if path.exists() else save(path)


@pytest.fixture
def in_process(monkeypatch, capsys, tmp_path):
    """Run a command in this process, in an empty folder: (command, arguments) -> (exit code, stdout, stderr)."""
    from structsam_export.cli import main

    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["structsam-export", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            main()
        captured = capsys.readouterr()
        return stopped.value.code, captured.out, captured.err

    return run


@pytest.fixture
def encoder():
    """6x6 grid, windows of 4 (so 6 -> 8 with pads), block 1 global."""
    return tiny_encoder(image=(96, 96))
