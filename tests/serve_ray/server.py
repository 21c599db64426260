"""A real Ray Serve on this machine, in an environment of its own; kept in $STRUCTSAM_RAY, or in .pytest_cache/ray."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import yaml
from own_environment import python_with

PACKAGES = ("ray[serve]==2.60.0", "onnxruntime>=1.20", "numpy", "pillow")
READY = 240  # seconds the deployments may take


def environment():
    """Folder of the environment's programs."""
    return python_with("ray", PACKAGES).parent


def variables(pack):
    """The environment as the pack's README has it."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("COV_", "RAY_"))}
    # On a busy machine Ray's proxy takes longer to start than the 5 s after which Ray starts it anew, for ever.
    patient = {f"RAY_SERVE_PROXY_{check}_CHECK_TIMEOUT_S": "120" for check in ("READY", "HEALTH")}
    ray = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1"}
    return {**kept, **ray, **patient, "PYTHONPATH": str(pack)}


def status_of(url, body=None):
    """Status and body of a GET, or of a POST where there is a body; None where nobody listens."""
    try:
        with urllib.request.urlopen(urllib.request.Request(url, body), timeout=120) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
    except OSError:
        return None, b""


@contextmanager
def running(pack, log):
    """The address of `serve run config.yaml` in a pack's folder; it is stopped afterwards."""
    programs = environment()
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    config = yaml.safe_load((pack / "config.yaml").read_text())
    (pack / "test.yaml").write_text(yaml.safe_dump({"http_options": {"host": "127.0.0.1", "port": port}, **config}))
    command = [programs / "serve", "run", "test.yaml"]
    with log.open("w") as out:
        process = subprocess.Popen(
            list(map(str, command)),
            cwd=pack,
            env=variables(pack),
            stdout=out,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    url, end = f"http://127.0.0.1:{port}", time.monotonic() + READY
    try:
        while status_of(f"{url}/healthz")[0] != 200:
            assert process.poll() is None and time.monotonic() < end, log.read_text()[-4000:]
            time.sleep(0.5)
        yield url
    finally:
        os.killpg(process.pid, signal.SIGINT)
        try:
            process.wait(30)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
