"""A real tritonserver on this machine's CPU: the one inside nvidia-pytriton, in an environment of its own.

The environment is kept in $STRUCTSAM_TRITON, or in .pytest_cache/triton.
"""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest
from own_environment import python_with

# NumPy 2 makes this server's outputs empty.
PACKAGES = ("nvidia-pytriton==0.7.0", "numpy<2", "onnxruntime>=1.20", "pillow", "tritonclient[all]>=2.50")
READY = 240  # seconds the models may take to load and warm up
CACHE = 64 << 20


@dataclass(frozen=True)
class Running:
    """A server: its address for HTTP and gRPC, and its log."""

    http: str
    grpc: str
    metrics: str
    log: Path
    python: Path
    process: subprocess.Popen

    def get(self, path):
        """Status of a GET."""
        try:
            with urllib.request.urlopen(f"http://{self.http}{path}", timeout=5) as answer:
                return answer.status
        except urllib.error.HTTPError as error:
            return error.code
        except OSError:
            return None


def environment():
    """Python of the environment."""
    return python_with("triton", PACKAGES)


def free_ports(count):
    """Ports that nobody listens on."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return found


def backends(packages, place):
    """A folder of backends: Python, with the stub of this Python's version."""
    triton = packages / "pytriton" / "tritonserver"
    shutil.copytree(triton / "backends" / "python", place / "python")
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        pytest.skip(f"nvidia-pytriton has no stub for Python {version}")
    shutil.copy(stub, place / "python")
    for path in (place / "python" / stub.name, triton / "bin" / "tritonserver"):
        path.chmod(0o755)  # wheels lose it
    return triton, place


@contextmanager
def running(models, tmp_path):
    """A server of a model repository; it is ready, and stopped afterwards."""
    python = environment()
    packages = next((python.parents[1] / "lib").glob("python*/site-packages"))
    triton, place = backends(packages, tmp_path / "backends")
    ports = free_ports(3)
    command = [
        str(triton / "bin" / "tritonserver"),
        f"--model-repository={models}",
        f"--backend-directory={place}",
        f"--cache-directory={triton / 'caches'}",
        f"--cache-config=local,size={CACHE}",
        "--exit-on-error=false",
        "--backend-config=python,shm-default-byte-size=8388608",
    ]
    for name, port in zip(("http", "grpc", "metrics"), ports):
        command += [f"--{name}-address=127.0.0.1", f"--{name}-port={port}"]
    libraries = [str(packages / "nvidia_pytriton.libs"), sysconfig.get_config_var("LIBDIR")]
    variables = {
        **{k: v for k, v in os.environ.items() if k not in ("COV_CORE_SOURCE", "PYTHONPATH")},
        "LD_LIBRARY_PATH": ":".join(libraries),
        # The stub's interpreter takes the packages of the first python3 on the path, and reads no PYTHONPATH.
        "PATH": f"{python.parent}:{os.environ['PATH']}",
        "VIRTUAL_ENV": str(python.parents[1]),
    }
    log = tmp_path / "server.log"
    with log.open("w") as out:
        process = subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=variables)
    server = Running(*(f"127.0.0.1:{port}" for port in ports), log, python, process)
    try:
        end = time.monotonic() + READY
        while server.get("/v2/health/ready") != 200:
            assert process.poll() is None and "failed to load" not in log.read_text(), log.read_text()[-4000:]
            assert time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.5)
        yield server
    finally:
        for number, patience in ((signal.SIGINT, 20), (signal.SIGTERM, 10), (signal.SIGKILL, 10)):
            process.send_signal(number)
            try:
                process.wait(patience)
                break
            except subprocess.TimeoutExpired:
                continue
