"""`structsam-export serve` in a process of its own."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import tempfile
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil


@dataclass
class Running:
    """A server: its address, its process, and where its log is."""

    url: str
    process: subprocess.Popen
    log: Path
    kept: str | None = None

    def text(self):
        """Its log, also after its end."""
        return self.log.read_text() if self.kept is None else self.kept

    def lines(self, event=None):
        """What it logged, each line a JSON object."""
        found = [json.loads(line) for line in self.text().splitlines()]
        return [line for line in found if event in (None, line["event"])]

    def worker(self):
        """The process that serves: the command's own child, which it watches."""
        return psutil.Process(self.process.pid).children(recursive=True)[0]

    def stop(self, seconds=90):
        """SIGTERM; the exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(seconds)


@contextmanager
def server(*arguments, environment=()):
    """A server on a free port; what it left in its temporary folder makes the test fail."""
    with tempfile.TemporaryDirectory() as place:
        log, temporary = Path(place, "log"), Path(place, "tmp")
        temporary.mkdir()
        command = [sys.executable, "-m", "structsam_export", "serve", *map(str, arguments), "--port", "0"]
        variables = os.environ | {"TMPDIR": str(temporary), "STRUCTSAM_SUPERVISE": "1"} | dict(environment)
        with (
            log.open("w") as errors,
            subprocess.Popen(command, stdout=subprocess.PIPE, stderr=errors, env=variables) as p,
        ):
            try:
                line = p.stdout.readline().decode()
                assert "http" in line, log.read_text()
                running = Running(line.rsplit(" ", 1)[1].strip(), p, log)
                yield running
                running.kept = log.read_text()
            finally:
                if p.poll() is None:
                    p.send_signal(signal.SIGTERM)
                    try:
                        p.wait(60)
                    except subprocess.TimeoutExpired:
                        p.kill()
        assert not list(temporary.glob("structsam-*"))
