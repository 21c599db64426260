"""Files that appear whole or not at all, and what the disk refuses said as an error of ours."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from structsam_export.errors import OutputError, UsageError

_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@contextmanager
def disk_errors(where: Path) -> Iterator[None]:
    """Turn a full disk or a read-only folder into an `OutputError` that says so."""
    try:
        yield
    except OSError as error:
        if error.errno in _NO_SPACE:
            raise OutputError(
                f"No space left while writing to {where}. Free some, or pass another --output."
            ) from error
        if error.errno in _NO_ACCESS:
            raise OutputError(f"Cannot write to {where} ({error.strerror}). Pass another --output.") from error
        raise


@contextmanager
def temporary(path: Path, suffix: str = ".partial") -> Iterator[Path]:
    """A new empty file beside `path`, of a name nobody can foresee; it is deleted after the `with` block.

    Files named in an ONNX file of the same folder (external weights) can be read through it.
    """
    with disk_errors(path.parent):
        # Created exclusively: a link that was planted under the name cannot be written through.
        handle, name = tempfile.mkstemp(prefix=f".{path.name[:100]}.", suffix=suffix, dir=path.parent)
    os.close(handle)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name; it gets its own name only if the body succeeds.

    What is no regular file (a device, a pipe) is written to rather than replaced, and a link's target rather than the
    link.

    Raises:
        OutputError: the place cannot be written to.
    """
    place = path.resolve() if path.is_symlink() else path
    special = place.exists() and not place.is_file()
    with temporary(Path(tempfile.gettempdir()) / place.name if special else place) as partial:
        with disk_errors(place.parent):
            yield partial
        with disk_errors(place.parent):
            if special:
                place.write_bytes(partial.read_bytes())
            else:
                partial.chmod(0o666 & ~_umask())
                partial.replace(place)


def _umask() -> int:
    """The permissions that new files of this process do not get; temporary files are private until they are done."""
    value = os.umask(0)
    os.umask(value)
    return value


@contextmanager
def new_folder_at(target: Path, marker: str, what: str, *, force: bool, option: str = "--output") -> Iterator[Path]:
    """A folder beside `target` that takes its place only if the body succeeds.

    Args:
        target: the folder to make.
        marker: a file that folders of this kind have; a folder without it is never replaced.
        what: such a folder in words, for messages.
        force: replace an earlier one.
        option: what the target is called on the command line.

    Raises:
        UsageError: `target` exists and `force` is not given, or it is something else.
        OutputError: the place cannot be written to.
    """
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file. Pass another {option}.")
    occupied = target.is_dir() and any(target.iterdir())
    if occupied and not force:
        raise UsageError(f"{target} already exists. Pass --force to replace it, or another {option}.")
    if occupied and not (target / marker).exists():
        raise UsageError(f"{target} is not {what} of structsam-export; it will not be replaced.")
    with disk_errors(target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=f".{target.name}.partial-", dir=target.parent))
        partial.chmod(0o755)
        try:
            yield partial
            old = partial.with_name(f"{partial.name}.old")
            if target.exists():
                target.replace(old)
            partial.replace(target)
            shutil.rmtree(old, ignore_errors=True)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


@contextmanager
def staged_files(folder: Path) -> Iterator[Path]:
    """A temporary folder inside `folder` whose files move up into it only if the body succeeds."""
    with disk_errors(folder):
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=folder))
        try:
            yield partial
            for path in sorted(partial.iterdir()):
                path.replace(folder / path.name)
        finally:
            shutil.rmtree(partial, ignore_errors=True)


def require_space(where: Path, needed: int) -> None:
    """Refuse to start what cannot be finished.

    Raises:
        OutputError: less than `needed` bytes are free on the disk of `where`.
    """
    place = where
    while not place.exists():
        place = place.parent
    free = shutil.disk_usage(place).free
    if free < needed:
        raise OutputError(
            f"{where} has {free / 1e9:.1f} GB free; this export needs about {needed / 1e9:.1f} GB. Free some, or pass "
            "another --output."
        )
