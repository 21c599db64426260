"""What surrounds a run: streams, locales, limits, disks, links; the commands are those that users type."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = [sys.executable, "-m", "structsam_export"]
SHELL = " ".join(PROGRAM)


def shell(line, folder, **environment):
    """Exit code and everything said of a line for bash."""
    env = {k: v for k, v in {**os.environ, **environment}.items() if v is not None}
    done = subprocess.run(["bash", "-c", line], capture_output=True, text=True, cwd=folder, env=env, timeout=300)
    assert "Traceback" not in done.stderr and "Exception ignored" not in done.stderr, done.stderr
    return done.returncode, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("line", "code", "said"),
    [
        ("methods >&-", 4, "Standard output is closed"),
        ("methods > /dev/full", 4, "No space left"),
        ("methods | true; exit ${PIPESTATUS[0]}", 141, ""),
        ("methods 2>&- > /dev/null", 0, ""),
        ("methods <&- > /dev/null", 0, ""),
        ("methods 2>/dev/full > /dev/null", 0, ""),
        ("nothing 2>/dev/full", 2, ""),
    ],
)
def test_streams(line, code, said, tmp_path):
    ended, text = shell(f"sleep 0 && {SHELL} {line}", tmp_path)
    assert ended == code and said in text


@pytest.mark.parametrize(
    "environment",
    [
        {"HOME": None},
        {"HOME": "/nonexistent"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"},
        {"TERM": "dumb", "COLUMNS": "1"},
        {"TMPDIR": "/nonexistent"},
        {"COLUMNS": "x", "LINES": "-1"},
    ],
)
def test_environments(environment, tmp_path):
    assert shell(f"{SHELL} methods", tmp_path, **environment)[0] == 0


def test_a_folder_that_has_gone(tmp_path):
    (tmp_path / "gone").mkdir()
    code, said = shell(
        f"cd gone && rmdir ../gone && {SHELL} methods", tmp_path, PYTHONPATH=str(Path(__file__).parents[2])
    )
    assert code == 4 and "no longer exists" in said


def trace(tiny, output, *more):
    return ["trace", "--model", "tiny", "--checkpoint", tiny, "--precision", "fp32", "--output", output, *more]


def test_file_sizes_are_limited(server, tiny, tmp_path):
    """As `ulimit -f` does, in a process that has started already."""
    code, said, _ = server.run(*trace(tiny, tmp_path / "out"), limits={"FSIZE": 100_000})
    assert code == 4 and "No space left" in said and list(tmp_path.iterdir()) == []


def test_memory_is_limited(server, tiny, tmp_path):
    code, said, _ = server.run("trace", "--model", "demo", "--output", tmp_path / "out", limits={"AS": "now"})
    assert code == 4 and "memory" in said.lower(), said


def test_descriptors_are_limited(server, tiny, tmp_path):
    code, said, _ = server.run(*trace(tiny, tmp_path / "out"), limits={"NOFILE": 24})
    assert code in (0, 4, 5) and "Traceback" not in said


def test_the_output_is_a_link(server, tiny, tmp_path):
    """A link stays a link; a dangling one leads to the new folder."""
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to("real")
    (tmp_path / "dangling").symlink_to("new")
    for link, real in (("link", "real"), ("dangling", "new")):
        assert server.run(*trace(tiny, link), cwd=str(tmp_path))[0] == 0
        assert (tmp_path / link).is_symlink() and (tmp_path / real / "manifest.json").is_file()
    assert server.run(*trace(tiny, "link", "--force"), cwd=str(tmp_path))[0] == 0
    assert (tmp_path / "link").is_symlink() and (tmp_path / "real" / "manifest.json").is_file()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["dangling", "link", "new", "real"]


def test_the_output_is_the_current_folder(server, tiny, tmp_path):
    place = tmp_path / "here"
    place.mkdir()
    for more in ([], ["--force"]):
        assert server.run(*trace(tiny, ".", *more), cwd=str(place))[0] == 0
        assert (place / "manifest.json").is_file() and not list(place.glob(".*"))
    assert [p.name for p in tmp_path.iterdir()] == ["here"]


@pytest.mark.parametrize("which", ["mount", "full", "read-only"])
def test_mounted_disks(which, server, tiny, tmp_path):
    """Volumes, full disks and read-only ones; only for root, who may mount them."""
    place = tmp_path / "disk"
    place.mkdir()
    size = "100k" if which == "full" else "64m"
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], capture_output=True)
    if mounted.returncode:
        pytest.skip("nothing can be mounted here")
    try:
        if which == "read-only":
            assert server.run(*trace(tiny, place / "out"))[0] == 0
            subprocess.run(["mount", "-o", "remount,ro", place], check=True)
            for command in (["rewrite"], ["build", "--backend", "openvino"], ["validate"]):
                code, said, _ = server.run(command[0], place / "out", *command[1:])
                assert code in (4, 5) and "Traceback" not in said
            code, said, _ = server.run("evaluate", "--dataset", "bundled", "--limit", "1", "--csv", place / "a.csv")
            assert code == 4 and "Read-only" in said or "not writable" in said
        else:
            code, said, _ = server.run(*trace(tiny, place))
            assert code == (4 if which == "full" else 0), said
            assert not [p for p in place.iterdir() if p.name.startswith(".")]
            if which == "mount":
                assert server.run(*trace(tiny, place, "--force"))[0] == 0
                assert (place / "manifest.json").is_file() and [p.name for p in tmp_path.iterdir()] == ["disk"]
    finally:
        subprocess.run(["umount", place], check=True)


def test_two_runs_at_once(tiny, server, tmp_path):
    """The second one is refused while the first one lives."""
    from structsam_export.drafts import draft, prefix_beside, settle_beside

    place = tmp_path / "out"
    with draft(tmp_path, prefix_beside(place), lambda: settle_beside(place)):
        code, said, _ = server.run(*trace(tiny, place))
        assert code == 2 and "Another run" in said
    assert server.run(*trace(tiny, place))[0] == 0


def test_temporary_files_have_no_room(server, tmp_path):
    """The message names TMPDIR."""
    place = tmp_path / "small"
    place.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4k", "tmpfs", place], capture_output=True).returncode:
        pytest.skip("nothing can be mounted here")
    try:
        shutil.copy(os.devnull, place / "x")
        from structsam_export.errors import OutputError
        from structsam_export.files import scratch

        with pytest.MonkeyPatch.context() as patch, pytest.raises(OutputError, match="TMPDIR"):
            patch.setattr("tempfile.tempdir", str(place))
            with scratch("structsam-test-") as folder:
                (folder / "large").write_bytes(b"x" * 100_000)
    finally:
        subprocess.run(["umount", place], check=True)
