"""Advisory locks on files and folders, which end with the process that holds them, however it ends.

Where the file system has no locks, everything counts as free: what they prevent is then left to the user.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

try:
    import fcntl
except ImportError:  # not on Windows
    fcntl = None  # type: ignore[assignment]

WAIT = 10.0  # seconds that a folder's guard is waited for; it is held for moments
_mine = threading.local()  # folders that this thread guards: a guard within a guard is none
_owned: set[str] = set()  # folders that this process has locked for longer, which need no guard


def take(handle: int, wait: float = 0.0) -> bool:
    """Lock an open file or folder for this process; False if another run holds it for longer than `wait` seconds."""
    if fcntl is None:
        return True
    until = time.monotonic() + wait
    while True:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        except BlockingIOError:
            if time.monotonic() >= until:
                return False
            time.sleep(0.01)
        except OSError:  # a file system without locks
            return True


@contextmanager
def held(path: Path, wait: float = 0.0) -> Iterator[bool]:
    """Hold a lock on a file or folder for the `with` block; yields whether it was free."""
    handle = os.open(path, os.O_RDONLY)
    try:
        yield take(handle, wait)
    finally:
        os.close(handle)


def in_use(path: Path) -> bool:
    """Whether a run that still lives holds a lock on a file or folder."""
    with suppress(FileNotFoundError), held(path) as free:
        return not free
    return False


@contextmanager
def owned(path: Path) -> Iterator[None]:
    """Lock a new folder of this process for the `with` block, whatever it is called by then."""
    handle, name = os.open(path, os.O_RDONLY), os.path.realpath(path)
    try:
        take(handle)
        _owned.add(name)
        yield
    finally:
        _owned.discard(name)
        os.close(handle)


@contextmanager
def guarded(folder: Path) -> Iterator[None]:
    """Keep other runs from making and clearing temporary files in a folder meanwhile: for moments, not for stages."""
    guards: set[str] = _mine.__dict__.setdefault("guards", set())
    place = os.path.realpath(folder)
    if place in guards or place in _owned:
        yield
        return
    try:
        handle = os.open(folder, os.O_RDONLY)
    except PermissionError:  # a folder that may be written to, but not listed
        yield
        return
    guards.add(place)
    try:
        take(handle, WAIT)
        yield
    finally:
        guards.discard(place)
        os.close(handle)
