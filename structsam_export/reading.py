"""Reading what others wrote: whatever the system refuses is said as an error of ours, in one place."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from structsam_export.errors import BadInputError, shortened

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
