"""Drafts: what killed runs left is finished, put back or cleared; two runs at once; names that are taken meanwhile."""

from __future__ import annotations

import json
import os

import pytest
from bench_files import folder_of, outer_product

from structsam_export import drafts, locks
from structsam_export.backends.base import Engine
from structsam_export.errors import ArtifactError, OutputError, UsageError
from structsam_export.files import atomic, check_writable, scratch, temporary
from structsam_export.folder import ExportFolder, new_folder

SMALL = outer_product(4, 4)


@pytest.fixture
def mine(tmp_path):
    return ExportFolder.read(folder_of(tmp_path / "mine", SMALL))


def names(folder):
    return sorted(p.name for p in folder.iterdir())


def sealed(folder, **files):
    """A ready draft, as a killed run leaves it, with a manifest that lists these files alone."""
    with folder.changing() as draft:
        draft.forget(["encoder.onnx"])
        for name, text in files.items():
            (draft.path / f"{name}.json").write_text(text)
            draft.add(f"{name}.json")
        draft.write()
        ready = folder.path / ".ready-abcdefgh"
        (draft.path / drafts.FORGET).write_text('["encoder.onnx"]')
        kept = {p.name: p.read_bytes() for p in draft.path.iterdir()}
        ready.mkdir()
        for name, data in kept.items():
            (ready / name).write_bytes(data)
        os.utime(ready)
        raise KeyboardInterrupt


def test_a_failed_stage_changes_nothing(mine):
    before = {p.name: p.read_bytes() for p in mine.path.iterdir()}
    with pytest.raises(RuntimeError), mine.changing() as draft:
        (draft.path / "encoder.onnx").write_text("half")
        draft.forget(["encoder.raw.onnx"])
        draft.record(passed=True)
        raise RuntimeError
    assert {p.name: p.read_bytes() for p in mine.path.iterdir()} == before
    assert ExportFolder.read(mine.path).manifest == mine.manifest


def test_a_stage_takes_effect_whole(mine):
    (mine.path / "e.engine").write_text("old")
    mine.add_engine(Engine("e.engine", "encoder", "toy", "1", "x", "0" * 64, 3))
    mine.record(passed=True)
    with mine.changing() as draft:
        (draft.path / "encoder.onnx").write_bytes((mine.path / "encoder.raw.onnx").read_bytes() + b"")
        draft.forget(draft.derived)
        draft.add("encoder.onnx")
        draft.record(passed=None)
        assert (mine.path / "e.engine").exists()  # until the new file is there
    assert names(mine.path) == ["encoder.onnx", "encoder.raw.onnx", "manifest.json"]
    assert mine.manifest.engines == [] and ExportFolder.read(mine.path).manifest == mine.manifest


def test_a_ready_draft_is_finished_by_the_next_run(mine, capsys):
    with pytest.raises(KeyboardInterrupt):
        sealed(mine, report="{}")
    again = ExportFolder.read(mine.path)
    assert set(again.manifest.files) == {"encoder.raw.onnx", "report.json"}
    assert names(mine.path) == ["encoder.raw.onnx", "manifest.json", "report.json"]
    assert "Finished what a killed run had begun" in capsys.readouterr().err


@pytest.mark.parametrize("name", ["../victim", "/etc/hostname", "a/b"])
def test_a_planted_draft_reaches_nothing_outside(mine, name, tmp_path):
    (tmp_path / "victim").write_text("mine")
    ready = mine.path / ".ready-abcdefgh"
    ready.mkdir()
    (ready / "manifest.json").write_bytes((mine.path / "manifest.json").read_bytes())
    (ready / drafts.FORGET).write_text(json.dumps([name]))
    with pytest.raises(ArtifactError, match="no plain file name"):
        ExportFolder.read(mine.path)
    assert (tmp_path / "victim").read_text() == "mine"


def test_leftovers_are_cleared_and_live_ones_are_not(mine):
    dead, alive = mine.path / ".partial-abcdefgh", mine.path / ".partial-12345678"
    for place in (dead, alive):
        place.mkdir()
        (place / "half").write_text("")
    (mine.path / ".encoder.onnx.abcdefgh.partial").write_text("half")
    (mine.path / ".notes").write_text("the user's")
    with locks.held(alive), temporary(mine.path / "a.json") as living:
        ExportFolder.read(mine.path)
        assert not dead.exists() and alive.exists() and living.exists()
    assert not (mine.path / ".encoder.onnx.abcdefgh.partial").exists() and (mine.path / ".notes").exists()


def test_only_one_run_works_on_a_folder(mine, tmp_path):
    def open_both():
        with mine.changing(), ExportFolder.read(mine.path).changing():
            pass

    with pytest.raises(UsageError, match="Another run is working"):
        open_both()
    other = ExportFolder.read(mine.path)
    with other.changing() as draft:
        draft.record(passed=True)
    with pytest.raises(UsageError, match="changed by another run"), mine.changing():
        pass


def test_a_name_that_is_taken_meanwhile(mine, tmp_path):
    with pytest.raises(UsageError, match="already exists"), new_folder(tmp_path / "o", mine.manifest, force=False) as m:
        m.write()
        folder_of(tmp_path / "o", SMALL)
    assert (tmp_path / "o" / "encoder.onnx").exists() and names(tmp_path) == ["mine", "o"]


@pytest.mark.parametrize("exchange", [True, False])
def test_an_earlier_export_is_replaced_in_one_step(mine, tmp_path, exchange, monkeypatch):
    if not exchange:
        monkeypatch.setattr(drafts, "renamed", lambda *_: False)
    (mine.path / "more").write_text("")
    with new_folder(mine.path, mine.manifest, force=True) as made:
        (made.path / "new").write_text("")
        made.write()
        assert (mine.path / "more").exists()
    assert names(mine.path) == ["manifest.json", "new"] and names(tmp_path) == ["mine"]


def test_an_export_between_two_names_is_put_back(mine, tmp_path, capsys):
    old = tmp_path / ".mine.partial-abcdefgh.old"
    mine.path.rename(old)
    (tmp_path / ".mine.partial-abcdefgh").mkdir()
    assert ExportFolder.read(mine.path).manifest == mine.manifest
    with new_folder(mine.path, mine.manifest, force=True) as made:
        made.write()
    assert names(tmp_path) == ["mine"]


@pytest.mark.parametrize("foreign", [False, True])
def test_what_a_killed_run_left_ready_in_a_new_folder_is_no_obstacle(mine, tmp_path, foreign):
    """The same command succeeds without --force; where there is more than the killed run's files, it asks."""
    out = tmp_path / "out"
    out.mkdir()
    mine.path.rename(out / ".ready-abcdefgh")
    (out / ".ready-abcdefgh" / drafts.FORGET).write_text("[]")
    if foreign:
        (out / "notes.txt").write_text("mine")
        with pytest.raises(UsageError, match="--force"), new_folder(out, mine.manifest, force=False):
            pass
        assert (out / "notes.txt").read_text() == "mine"
        return
    with new_folder(out, mine.manifest, force=False) as made:
        (made.path / "new").write_text("")
        made.write()
    assert names(out) == ["manifest.json", "new"] and names(tmp_path) == ["out"]


def test_a_verdict_belongs_to_hashes(mine):
    mine.record(passed=True, judged=mine.manifest.graphs())
    assert ExportFolder.read(mine.path).manifest.results.passed is True
    (mine.path / "encoder.onnx").write_bytes((mine.path / "encoder.onnx").read_bytes() + b"\x72\x00")
    mine.add("encoder.onnx")
    mine.write()
    assert ExportFolder.read(mine.path).manifest.results.passed is None


def test_a_file_that_nothing_may_replace_is_written_in_place(tmp_path, monkeypatch):
    """As containers mount single files, and as devices and standard output are."""
    target = tmp_path / "mounted.csv"
    target.write_text("old and long")
    number = target.stat().st_ino
    monkeypatch.setattr("structsam_export.files.is_mount", lambda path: path == target)
    with atomic(target) as partial:
        partial.write_text("new")
    assert target.read_text() == "new" and target.stat().st_ino == number
    with pytest.raises(OutputError, match="No space left"), atomic(drafts.Path("/dev/full")) as partial:
        partial.write_text("x")
    with atomic(drafts.Path("/dev/null")) as partial:
        partial.write_text("x")
    assert drafts.Path("/dev/null").is_char_device()
    with pytest.raises(OutputError, match="Is a directory"), atomic(tmp_path):
        pass
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(OutputError, match="symbolic links"), atomic(tmp_path / "loop"):
        pass


def test_what_cannot_be_written_is_said_first(tmp_path):
    check_writable(tmp_path / "a.csv", "pass another --csv")
    check_writable(drafts.Path("/dev/null"), "pass another --csv")
    for path in (tmp_path, tmp_path / "no" / "a.csv", tmp_path / ("a" * 300)):
        with pytest.raises(OutputError, match="pass another --csv"):
            check_writable(path, "pass another --csv")


def test_scratch_of_killed_runs_is_cleared(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / "structsam-x-dead").mkdir()
    with scratch("structsam-x-") as first, scratch("structsam-x-") as second:
        assert sorted(tmp_path.iterdir()) == sorted([first, second])
    assert list(tmp_path.iterdir()) == []


def test_scratch_names_tmpdir(monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", "/proc")
    with pytest.raises((OutputError, FileNotFoundError), match=r"TMPDIR|No such file"), scratch("x-"):
        pass
