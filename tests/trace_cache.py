"""Files that are slow to make and depend on the sources alone, such as traces: made once for all workers and runs."""

from __future__ import annotations

import fcntl
import hashlib
import shutil
import sys
import time
from functools import cache
from importlib.metadata import version
from pathlib import Path

import structsam_export

TESTS, PACKAGE = Path(__file__).parent, Path(structsam_export.__file__).parent
FOLDER = TESTS.parent / ".pytest_cache" / "traces"
KEEP = 24 * 3600  # seconds that files of other sources are kept
LIBRARIES = ("torch", "onnx", "onnxscript", "segment-anything", "numpy")


def cached_file(name, make):
    """The file `name`; where it is not there yet, `make(path)` writes it, while other workers wait for it."""
    folder = FOLDER / sources()
    if not folder.exists():
        folder.mkdir(parents=True, exist_ok=True)
        forget_old(folder)
    path = folder / name
    with (folder / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not path.exists():
            partial = folder / f"partial.{name}"
            if partial.is_dir():  # of a run that was killed
                shutil.rmtree(partial)
            make(partial)
            partial.replace(path)
    return path


@cache
def sources():
    """A hash of all that a file may depend on: the package, what builds the tests' models, and the libraries."""
    digest = hashlib.sha256(repr([sys.version, *(version(name) for name in LIBRARIES)]).encode())
    for path in (*sorted(PACKAGE.rglob("*.py")), TESTS / "conftest.py", TESTS / "tiny_model.py"):
        digest.update(f"{path.name} {len(path.read_bytes())} ".encode() + path.read_bytes())
    return digest.hexdigest()[:16]


def forget_old(folder):
    """Remove what other sources left behind a while ago."""
    for other in FOLDER.iterdir():
        if other != folder and time.time() - other.stat().st_mtime > KEEP:
            shutil.rmtree(other, ignore_errors=True)
