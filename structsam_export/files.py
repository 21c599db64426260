"""Files that appear whole or not at all, and what the disk refuses said as an error of ours."""

from __future__ import annotations

import errno
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from structsam_export.errors import OutputError, shortened
from structsam_export.locks import guarded, in_use, owned, take

ANOTHER = "pass another --output"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
# Everything else that a path or a disk can be the reason of. ENOENT is not among them: a file that vanishes is a bug.
_NO_ACCESS = (
    *(errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.EISDIR, errno.EBUSY, errno.ELOOP),
    *(errno.ENAMETOOLONG, errno.EIO, errno.ENXIO, errno.ENODEV, errno.EMFILE, errno.ENFILE, errno.EXDEV, errno.EILSEQ),
    *(errno.ENOTEMPTY, errno.EINVAL, errno.ETXTBSY, errno.EMLINK, errno.ESTALE, errno.ENOTSUP),
)
TEMPORARY = re.compile(r"\..+\.[a-z0-9_]{8}\.partial(\.[a-z]+)?")
_looked_through: set[Path] = set()


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def no_space(error: OSError) -> bool:
    """Whether a disk is full; NumPy says so without a number: "4096 requested and 1024 written"."""
    said = str(error)
    return error.errno in _NO_SPACE or (error.errno is None and "requested and" in said and "written" in said)


@contextmanager
def disk_errors(where: Path, otherwise: str = ANOTHER) -> Iterator[None]:
    """Turn what a disk refuses into an `OutputError` that says so.

    Args:
        where: what is written.
        otherwise: what else a user can do, for the message.

    Raises:
        OutputError: a full disk, a folder that is read-only, or a path that cannot be one.
    """
    try:
        yield
    except OSError as error:
        shown = shortened(where)
        if no_space(error):
            raise OutputError(f"No space left while writing to {shown}. Free some, or {otherwise}.") from error
        if error.errno in _NO_ACCESS:
            raise OutputError(f"Cannot write to {shown} ({error.strerror}). Check it, or {otherwise}.") from error
        raise


@contextmanager
def scratch(prefix: str) -> Iterator[Path]:
    """A folder for temporary files, deleted afterwards; those of killed runs are deleted on the way.

    Args:
        prefix: of its name, "structsam-..."; it ends in something nobody can foresee.

    Raises:
        OutputError: the place for temporary files is full or cannot be written to; the message names TMPDIR.
    """
    root = Path(tempfile.gettempdir())
    with disk_errors(root, "set TMPDIR to another folder"), ExitStack() as alive:
        with guarded(root):
            for old in root.glob(f"{prefix}*"):
                with suppress(OSError):
                    if old.is_dir() and not old.is_symlink() and old.stat().st_uid == os.getuid() and not in_use(old):
                        shutil.rmtree(old, ignore_errors=True)
            place = Path(tempfile.mkdtemp(prefix=prefix))
            alive.enter_context(owned(place))
            alive.callback(shutil.rmtree, place, ignore_errors=True)
        yield place


@contextmanager
def temporary(path: Path, ending: str = "") -> Iterator[Path]:
    """A new empty file beside `path`, of a name nobody can foresee; it is deleted after the `with` block.

    Files named in an ONNX file of the same folder (external weights) can be read through it. What killed runs left in
    the folder is deleted on the way.
    """
    with disk_errors(path.parent), guarded(path.parent):
        if path.parent.absolute() not in _looked_through:  # once is enough: listing a large folder takes its time
            clear_temporary(path.parent)
            _looked_through.add(path.parent.absolute())
        # Created exclusively: a link that was planted under the name cannot be written through.
        handle, name = tempfile.mkstemp(prefix=f".{short(path.name)}.", suffix=f".partial{ending}", dir=path.parent)
        take(handle)  # others see by it that this run lives
    try:
        yield Path(name)
    finally:
        with suppress(OSError):  # on a disk that became read-only; what went wrong before it is what counts
            Path(name).unlink(missing_ok=True)
        os.close(handle)


def short(name: str) -> str:
    """The beginning of a file name, which leaves room for what temporary names add."""
    return os.fsdecode(os.fsencode(name)[:100])


def clear_temporary(folder: Path) -> None:
    """Delete temporary files of runs that no longer live."""
    with os.scandir(folder) as entries:
        found = [e for e in entries if TEMPORARY.fullmatch(e.name) and e.is_file(follow_symlinks=False)]
    for entry in found:
        with suppress(OSError):
            if not in_use(Path(entry.path)):
                Path(entry.path).unlink(missing_ok=True)


@contextmanager
def atomic(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name; it gets its own name only if the body succeeds.

    What is no regular file (a device, a pipe, standard output) is written to rather than replaced, and so is a file
    that a container mounts or whose folder cannot be written to; of a link the target is written.

    Raises:
        OutputError: the place cannot be written to.
    """
    with disk_errors(path.parent):
        through = written_through(path)
        place = path if through else resolved(path)
        beside = Path(tempfile.gettempdir()) / place.name if through else place
    with temporary(beside) as partial:
        with disk_errors(place.parent):
            yield partial
        with disk_errors(place.parent):
            if through:
                with partial.open("rb") as source, place.open("wb") as target:
                    shutil.copyfileobj(source, target)
            else:
                partial.chmod(0o666 & ~_umask())
                partial.replace(place)


def resolved(path: Path) -> Path:
    """Where a path leads to, all links followed; it need not exist.

    Raises:
        OSError: links that lead to each other.
    """
    place = Path(os.path.realpath(path))
    if place.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return place


def written_through(path: Path) -> bool:
    """Whether a path is written to as it stands, because nothing else may take its place.

    Raises:
        IsADirectoryError: a folder.
    """
    if not path.exists():
        return False
    mode = path.stat().st_mode
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    place = Path(os.path.realpath(path))
    system = path.absolute().parts[1:2] in (("dev",), ("proc",))  # /dev/stdout, whatever it leads to
    return not stat.S_ISREG(mode) or system or is_mount(place) or not os.access(place.parent, os.W_OK)


def is_mount(path: Path) -> bool:
    """Whether something is mounted on a path: a volume, or a file or folder that a container was given."""
    if os.path.ismount(path):
        return True
    try:  # `ismount` does not see folders of the same disk that are mounted
        lines = Path("/proc/self/mountinfo").read_text(errors="surrogateescape").splitlines()
    except OSError:
        return False
    octal = re.compile(r"\\([0-7]{3})")
    points = {octal.sub(lambda m: chr(int(m[1], 8)), line.split(" ")[4]) for line in lines if line.count(" ") > 4}
    return str(path) in points


def check_writable(path: Path, otherwise: str) -> None:
    """Refuse a file that cannot be written, before minutes of work.

    Raises:
        OutputError: a folder, or one that does not exist, or not writable.
    """
    with disk_errors(path, otherwise):
        place = Path(os.path.realpath(path))
        asked = path if path.exists() and written_through(path) else place.parent
        if not os.access(asked, os.W_OK):
            raise PermissionError(errno.EACCES, f"{shortened(asked)} is not writable")


def _umask() -> int:
    """The permissions that new files of this process do not get; temporary files are private until they are done."""
    value = os.umask(0)
    os.umask(value)
    return value


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
