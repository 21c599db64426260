"""`structsam-export serve`: what it refuses before it listens."""

from __future__ import annotations

import shutil
import socket
import sys

import pytest


def test_a_damaged_or_foreign_folder_is_refused(in_process, tiny, tmp_path):
    damaged = shutil.copytree(tiny, tmp_path / "damaged")
    data = bytearray((damaged / "encoder.onnx").read_bytes())
    data[len(data) // 2] ^= 1
    (damaged / "encoder.onnx").write_bytes(data)
    code, _, said = in_process("serve", damaged)
    assert code == 5 and "SHA-256" in said
    code, _, said = in_process("serve", tmp_path)
    assert code == 5 and "manifest" in said
    code, _, said = in_process("serve", tiny, damaged)
    assert code == 5 and "damaged" in said


def test_unsafe_requests_are_refused(in_process, tiny, tmp_path, monkeypatch):
    monkeypatch.delenv("STRUCTSAM_TOKEN", raising=False)
    code, _, said = in_process("serve", tiny, "--host", "0.0.0.0")
    assert code == 2 and "--token-file" in said
    (tmp_path / "token").write_text("short\n")
    code, _, said = in_process("serve", tiny, "--host", "0.0.0.0", "--token-file", tmp_path / "token")
    assert code == 2 and "16" in said
    (tmp_path / "token").write_bytes(b"\xff" * 20)
    assert in_process("serve", tiny, "--token-file", tmp_path / "token")[0] == 5
    assert in_process("serve", tiny, tiny)[0] == 2
    assert in_process("serve", tiny, tiny, tiny)[0] == 2
    assert in_process("serve", tiny, "--allow-origin", "labels.example")[0] == 2


def test_a_taken_port_is_said(in_process, tiny):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        code, _, said = in_process("serve", tiny, "--backend", "onnxruntime", "--port", taken.getsockname()[1])
    assert code == 4 and "Cannot listen" in said


@pytest.mark.parametrize("library", ["starlette", "uvicorn", "pydantic", "prometheus_client"])
def test_a_missing_library_is_said(in_process, tiny, monkeypatch, library):
    from importlib import util

    found = util.find_spec
    monkeypatch.setattr(util, "find_spec", lambda name, *more: None if name == library else found(name, *more))
    code, _, said = in_process("serve", tiny)
    assert code == 4 and library in said and "export[serve]" in said


def test_serving_needs_no_pytorch():
    import subprocess

    code = "import sys, structsam_export.serve.server; print('torch' in sys.modules)"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "False"
