"""Commands that read graphs of others run in a process of their own, and end in a sentence even where parsers die.

A parser of a runtime can crash, hang or ask for all memory on a graph that somebody else made. So the command line
runs such commands in a child and watches it: the child says what it parses through a pipe (`parsing`), and the parent
ends it where that takes too long or too much memory, and tells of its death. The child dies with its parent.
"""

from __future__ import annotations

import ctypes
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from structsam_export.errors import ArtifactError, OutputError, shortened

# Commands that read export folders or ONNX files.
COMMANDS = ("rewrite", "build", "validate", "bench", "evaluate", "predict", "serve", "pack")
SWITCH = "STRUCTSAM_SUPERVISE"  # 0: everything in one process, for debuggers; else seconds, in place of SECONDS
PIPE = "STRUCTSAM_SUPERVISED_BY"
START = "import json, sys; sys.path[:] = json.loads(sys.argv.pop(1)); from structsam_export.cli import main; main()"
SECONDS, SECONDS_PER_MB = 900, 3  # that one parser may take for one file, ViT-H's builds on slow machines included
MEMORY_SHARE = 0.95  # of what is available when a command begins
POLL = 0.2  # seconds between looks at the child
MEMORY_POLL = 1.0  # seconds between looks at its memory: they should not be felt in a benchmark
CRASHES = {signal.SIGSEGV, signal.SIGABRT, signal.SIGBUS, signal.SIGILL, signal.SIGFPE, signal.SIGKILL, signal.SIGSYS}
_PR_SET_PDEATHSIG = 1
_pipe: int | None = None


# In the child.


def begin() -> None:
    """Find out whether this process is watched; called once, before anything else is started."""
    global _pipe
    number = os.environ.pop(PIPE, None)  # processes of ours that are started later are not the watched one
    if number is None or _pipe is not None:
        return
    _pipe = int(number)
    os.set_inheritable(_pipe, False)
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)

    def follow() -> None:  # where the system does not do it
        poll = select.poll()
        poll.register(_pipe or 0, 0)  # errors only: nobody reads any more
        poll.poll()
        os.kill(os.getpid(), signal.SIGKILL)

    threading.Thread(target=follow, daemon=True).start()


@contextmanager
def parsing(what: str, path: Path) -> Iterator[None]:
    """Tell the process that watches this one, if there is one, what reads which file meanwhile.

    Args:
        what: for the message: "TensorRT".
        path: the file, by whose size the time is limited.
    """
    if _pipe is None:
        yield
        return
    beside = path.with_name(f"{path.name}.data")
    size = sum(p.stat().st_size for p in (path, beside) if p.exists())
    say({"what": what, "path": str(path), "seconds": seconds() + SECONDS_PER_MB * size / 1e6})
    try:
        yield
    finally:
        say(None)


def seconds() -> float:
    """How long one parser may take for a small file."""
    asked = os.environ.get(SWITCH, "")
    return float(asked) if asked.isdecimal() and int(asked) else SECONDS


def say(message: Mapping[str, Any] | None) -> None:
    """One line to the parent."""
    with suppress(OSError):
        os.write(_pipe or -1, (json.dumps(message) + "\n").encode())


# In the parent.


@dataclass
class Watched:
    """A child, and what it last said."""

    process: subprocess.Popen[bytes]
    pipe: int
    memory: float
    parses: list[dict[str, Any]] = field(default_factory=list)  # innermost last
    until: float = float("inf")
    rest: bytes = b""
    looked: float = 0.0

    def listen(self) -> None:
        """Read what the child says, for a moment."""
        if not select.select([self.pipe], [], [], POLL)[0]:
            return
        data = os.read(self.pipe, 1 << 16)
        if not data:  # closed; the end of the process follows
            time.sleep(POLL / 20)
        *lines, self.rest = (self.rest + data).split(b"\n")
        for line in lines:
            said = json.loads(line)
            if said is None:
                self.parses.pop()
            else:
                self.parses.append({**said, "until": time.monotonic() + said["seconds"]})
        self.until = min((p["until"] for p in self.parses), default=float("inf"))

    def reading(self) -> str:
        """What was read last, in words."""
        if not self.parses:
            return "a file"
        return f"{self.parses[-1]['what']} read {shortened(self.parses[-1]['path'])}"

    def check(self) -> None:
        """Refuse what takes too long or too much.

        Raises:
            ArtifactError: while it reads a file.
            OutputError: memory ends otherwise.
        """
        if time.monotonic() > self.until:
            raise ArtifactError(f"Stopped: {self.reading()} for too long. The file is damaged, or not an export.")
        if time.monotonic() < self.looked + MEMORY_POLL:
            return
        self.looked = time.monotonic()
        if (used := memory_of(self.process.pid)) > self.memory:
            why = f"needs more than the {self.memory / 1e9:.1f} GB that are free"
            if self.parses:
                raise ArtifactError(f"Stopped while {self.reading()}: it {why}.")
            raise OutputError(f"Not enough memory: the command {why} ({used / 1e9:.1f} GB).")

    def end(self) -> int:
        """The exit code of the child that has ended.

        Raises:
            ArtifactError: it crashed.
        """
        code = self.process.returncode
        if code < 0 and -code in CRASHES:
            name = signal.Signals(-code).name
            hint = " (the system ran out of memory, or somebody ended it)" if -code == signal.SIGKILL else ""
            raise ArtifactError(
                f"The process died of {name}{hint} while {self.reading()}. The file is damaged, or not an export."
            )
        return code if code >= 0 else 128 - code


def wanted(arguments: Sequence[str]) -> bool:
    """Whether a command line is to be watched."""
    named = bool(arguments) and arguments[0] in COMMANDS and not {"-h", "--help"} & set(arguments)
    return named and _pipe is None and os.name == "posix" and os.environ.get(SWITCH, "1") != "0"


def supervised(arguments: Sequence[str]) -> int:
    """Run a command line in a child; its exit code.

    Raises:
        ArtifactError: it crashed, or read a file for too long or with too much memory.
        OutputError: memory ended otherwise.
    """
    ours, theirs = os.pipe()
    # Modules are found where this process finds them.
    command = [sys.executable, "-c", START, json.dumps(sys.path), *arguments]
    process = subprocess.Popen(command, pass_fds=[theirs], start_new_session=True, env=os.environ | {PIPE: str(theirs)})
    os.close(theirs)
    try:
        with forwarded(process):
            child = Watched(process, ours, memory_free())
            while process.poll() is None:
                child.listen()
                child.check()
            with suppress(OSError):
                child.listen()
            return child.end()
    finally:
        if process.poll() is None:
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # with the processes that it started
            process.wait()
        os.close(ours)


@contextmanager
def forwarded(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Hand signals that end a program on to a child, which has a session of its own: it cleans up and says so."""

    def hand_on(number: int, frame: FrameType | None) -> None:
        with suppress(ProcessLookupError):
            process.send_signal(number)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = [signal.signal(number, hand_on) for number in numbers]
    try:
        yield
    finally:
        for number, handler in zip(numbers, before):
            signal.signal(number, handler)


def memory_free() -> float:
    """Bytes that a command may use."""
    import psutil

    return float(MEMORY_SHARE * psutil.virtual_memory().available + psutil.swap_memory().free)


def memory_of(pid: int) -> int:
    """Bytes of a process and of those it started; pages of files, which the system can drop, do not count."""
    import psutil

    total = 0
    with suppress(psutil.Error):
        first = psutil.Process(pid)
        for process in (first, *first.children(recursive=True)):
            with suppress(psutil.Error):
                info = process.memory_info()
                total += info.rss - getattr(info, "shared", 0)
    return total
