"""Export folders with graphs that somebody made to hurt, their hashes right: every command ends in a sentence.

A parser may crash or hang on some of them; in the forks here that is seen as it is, and the same command under the
watching process has to end with exit code 5.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from itertools import cycle, islice

import pytest
from bench_files import folder_of
from hostile_graphs import FORMS, bytes_of, lay_beside, mutations, plain

from structsam_export.files import sha256_of

FILES = ("encoder.raw.onnx", "decoder.raw.onnx", "encoder.onnx", "decoder.onnx")
COMMANDS = (
    ["rewrite"],
    ["build", "--backend", "openvino", "--target", "f32"],
    ["bench", "--runs", "1"],
    ["build", "--backend", "tensorrt-rtx", "--target", "sm86"],
)
MEMORY = 24 << 30  # of addresses: runtimes map much more than they use
FEW = 6  # of the forms, by default
COUNT = 200


def laid(folder, content):
    """An export folder, all graphs of it the same."""
    shutil.rmtree(folder, ignore_errors=True)
    folder_of(folder, plain(), files=FILES, precision="fp32")
    lay_beside(folder)
    data = json.loads((folder / "manifest.json").read_text())
    data["model"]["geometry"] = GEOMETRY
    for name in (*FILES, "encoder.onnx.data"):
        if name in FILES:
            (folder / name).write_bytes(content)
        data["files"][name] = {"sha256": sha256_of(folder / name), "bytes": (folder / name).stat().st_size}
    (folder / "manifest.json").write_text(json.dumps(data))
    return folder


GEOMETRY = {
    "image_size": 96,
    "patch_size": 16,
    "dim": 32,
    "depth": 1,
    "heads": 2,
    "mlp_dim": 64,
    "out_channels": 8,
    "grid": [6, 6],
    "windows": [0],
}


def tried(large):
    """(name, content): by default some forms, in the large suite all of them and mutations, COUNT together."""
    names = list(FORMS) if large else [n for i, n in enumerate(FORMS) if i % (len(FORMS) // FEW) == 0 or "calls" in n]
    yield from ((name, bytes_of(name)) for name in names)
    if large:
        yield from islice(mutations(1), COUNT - len(names))


def test_graphs_are_used_or_refused(server, tmp_path, large, counted):
    secret = tmp_path / "secret"
    secret.write_bytes(b"\1" * 64)
    suspects = []
    chosen = cycle(COMMANDS[:2] if not large else COMMANDS)
    for name, content in tried(large):
        folder = laid(tmp_path / "folder", content)
        before = {p.name: p.read_bytes() for p in folder.iterdir()}
        command = next(chosen)
        arguments = [command[0], folder, *command[1:]]
        code, said, _ = server.run(*arguments, timeout=300, memory=MEMORY)
        counted("hostile ONNX", code)
        if code == "late" or code < 0:
            suspects.append((name, content, command, code))
            continue
        assert code in (0, 2, 4, 5) and "Traceback" not in said, (name, command, said[-2000:])
        assert "\x1b]" not in said and "\x1b[2J" not in said, name
        if code:
            assert {p.name: p.read_bytes() for p in folder.iterdir()} == before, (name, command)
    for name, content, command, code in suspects:
        ended = watched(laid(tmp_path / "folder", content), command)
        counted(f"of these, ended by the watching process ({code})", ended.returncode)
        assert ended.returncode in (4, 5) and "Traceback" not in ended.stderr, (name, command, ended.stderr[-2000:])
    assert secret.read_bytes() == b"\1" * 64


def watched(folder, command, seconds="20"):
    """A command as users run it."""
    environment = {**os.environ, "STRUCTSAM_SUPERVISE": seconds}
    line = [sys.executable, "-m", "structsam_export", command[0], str(folder), *command[1:]]
    return subprocess.run(line, capture_output=True, text=True, errors="replace", env=environment, timeout=300)


@pytest.mark.parametrize("form", ["external: unlisted", "external: link", "external: hard link", "external: parent"])
def test_weights_are_read_from_listed_plain_files_alone(form, tmp_path):
    from structsam_export.errors import ArtifactError
    from structsam_export.folder import ExportFolder

    folder = laid(tmp_path / "folder", bytes_of(form))
    with pytest.raises(ArtifactError):
        ExportFolder.read(folder).onnx("encoder")
