"""Reading what others wrote: whatever the system refuses is said as an error of ours, in one place."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from structsam_export.errors import ArtifactError, BadInputError, StructSAMError, shortened

NOT_THERE = "does not exist. Check the path."


@contextmanager
def read_errors(path: Path, what: str, kind: type[BadInputError], missing: str = NOT_THERE) -> Iterator[None]:
    """Turn what the system refuses into an error that names the file.

    Errors without a number are a library's own, about the content, and pass.

    Args:
        path: the file.
        what: what it is, for the message: "Photo".
        kind: the error to raise.
        missing: what to say, and to do, where the file does not exist.

    Raises:
        BadInputError: missing, a folder, not readable, or a name that cannot be one.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        if error.errno in (errno.ENOENT, errno.ENOTDIR):
            raise kind(f"{what} {shortened(path)} {missing}") from None
        if error.errno == errno.EISDIR:
            raise kind(f"{what} {path} is a folder. Pass a file inside it.") from None
        raise kind(f"{what} {shortened(path)} cannot be read: {os.strerror(error.errno)}.") from error
    except (ValueError, UnicodeError) as error:
        if "null" in str(error) or isinstance(error, UnicodeEncodeError):  # what the system never gets to see
            raise kind(f"{what} {shortened(path)!r} is no path: {error}.") from error
        raise


def check_file(path: Path, what: str, kind: type[BadInputError], missing: str = NOT_THERE) -> None:
    """Refuse what cannot be read, before a library fails on it in its own words.

    Raises:
        BadInputError: as `read_errors`; or a device, a pipe or a socket, on which reading may wait for ever.
    """
    with read_errors(path, what, kind, missing):
        mode = path.stat().st_mode
        if stat.S_ISDIR(mode):
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if not stat.S_ISREG(mode):
            raise kind(f"{what} {path} is no regular file. Pass a file.")
        with path.open("rb"):
            pass


def read_bytes(path: Path, what: str, kind: type[BadInputError], missing: str = NOT_THERE) -> bytes:
    """A whole file.

    Raises:
        BadInputError: as `check_file`.
    """
    check_file(path, what, kind, missing)
    with read_errors(path, what, kind, missing):
        return path.read_bytes()


# How libraries say that memory ended, where they raise no MemoryError.
OUT_OF_MEMORY = (
    *("bad_alloc", "not enough memory", "out of memory", "can't allocate memory", "cannot allocate memory"),
    *("failed to allocate memory", "can't start new thread", "failed to map segment"),
)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error, or what it came from, is that memory ended."""
    at: BaseException | None = error
    for _ in range(20):
        if at is None:
            return False
        if isinstance(at, MemoryError) or (isinstance(at, OSError) and at.errno == errno.ENOMEM):
            return True
        said = str(at).lower()
        if isinstance(at, (RuntimeError, ImportError, SystemError)) and any(words in said for words in OUT_OF_MEMORY):
            return True
        at = at.__cause__ or at.__context__
    return False


@contextmanager
def content_errors(path: Path) -> Iterator[None]:
    """Turn what a library says of a graph of an output folder into an `ArtifactError`; the cause is kept.

    Libraries raise whatever a damaged or hostile graph leads to. Errors of ours, of the system and of memory pass.

    Raises:
        ArtifactError: the graph cannot be used.
    """
    try:
        yield
    except (StructSAMError, MemoryError):
        raise
    except Exception as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise
        if is_out_of_memory(error):
            raise MemoryError(str(error)) from error
        lines = str(error).strip().splitlines()
        why = f"{type(error).__name__}: {shortened(lines[0])}" if lines else type(error).__name__
        raise ArtifactError(f"{path} cannot be used ({why}). Export again with --force.") from error
