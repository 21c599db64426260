"""Changes made aside that take effect whole, at whatever moment their run is stopped.

A draft is a folder of new files. A new export is a draft beside its final name, which it takes in one step; with
--force the old and the new folder exchange names, so that one of them is complete at any moment. A stage's draft lies
inside its export folder:

    .partial-<random>    being written; locked as long as its run lives, cleared by the next run otherwise
    .ready-<random>      complete, with the new manifest; the next run finishes what was begun

A ready draft is brought in so that the manifest never lists a file that is not as listed: first it forgets what
changes, then files move, then the new manifest. Export folders that cannot be renamed (a mounted volume, the current
folder) take new exports in this way, too.
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any

from structsam_export.console import note
from structsam_export.errors import UsageError, shortened
from structsam_export.files import atomic, clear_temporary, disk_errors, is_mount, resolved, short
from structsam_export.locks import guarded, in_use, owned
from structsam_export.manifest import bare
from structsam_export.paths import is_bare

MANIFEST = "manifest.json"
FORGET = ".forget.json"  # in a ready draft: names that the new manifest no longer lists
PATIENCE = 1.0  # seconds that a run may take to die which was just killed
RANDOM = "[a-z0-9_]{8}"
INSIDE = re.compile(rf"\.(partial|ready)-{RANDOM}")
_AT_FDCWD, _NOREPLACE, _EXCHANGE = -100, 1, 2


@contextmanager
def draft(parent: Path, prefix: str, settle: Callable[[], Iterable[Path]]) -> Iterator[Path]:
    """A new folder in `parent`, locked for as long as this run lives; what is left of it is deleted afterwards.

    Args:
        parent: where.
        prefix: of its name, which ends in something nobody can foresee.
        settle: puts right what killed runs left; returns the drafts of runs that still live.

    Raises:
        UsageError: another run is at work there.
    """
    with guarded(parent):
        until = time.monotonic() + PATIENCE
        while (living := list(settle())) and time.monotonic() < until:
            time.sleep(0.1)
        for other in living:
            raise UsageError(
                f"Another run is working on {shortened(other.parent if INSIDE.fullmatch(other.name) else other)}. "
                "Wait for it, or pass another folder."
            )
        place = Path(tempfile.mkdtemp(prefix=prefix, dir=parent))
        alive = ExitStack()
        alive.enter_context(owned(place))
        alive.callback(shutil.rmtree, place, ignore_errors=True)
    with alive:
        place.chmod(0o755)
        yield place


# Drafts inside an export folder.


def settle_inside(folder: Path) -> list[Path]:
    """Finish ready drafts of killed runs and delete what else they left; the drafts of runs that still live."""
    living, cleared = [], 0
    with os.scandir(folder) as entries:
        found = sorted(Path(e.path) for e in entries if INSIDE.fullmatch(e.name) and e.is_dir(follow_symlinks=False))
    for place in found:
        if in_use(place):
            living.append(place)
        elif place.name.startswith(".ready-"):
            finish(folder, place)
            note(f"Finished what a killed run had begun in {folder}.")
        else:
            shutil.rmtree(place)
            cleared += 1
    clear_temporary(folder)
    if cleared:
        note(f"Deleted what a killed run had left in {folder}.")
    return living


def settled(folder: Path) -> None:
    """Put right what killed runs left, before a folder is read; on a read-only disk it stays."""
    with suppress(OSError):
        if not folder.is_dir():
            with guarded(folder.absolute().parent):
                put_back(Path(os.path.realpath(folder)))
        if folder.is_dir():
            with guarded(folder):
                settle_inside(folder)


def commit(folder: Path, partial: Path, forgotten: Iterable[str]) -> None:
    """Bring in a complete draft.

    Args:
        folder: the export folder.
        partial: the draft in it, with its manifest.
        forgotten: files that the old manifest lists and the new one does not.
    """
    (partial / FORGET).write_text(json.dumps(sorted(forgotten)))
    ready = partial.with_name(partial.name.replace(".partial-", ".ready-"))
    partial.rename(ready)
    try:
        finish(folder, ready)
    except KeyboardInterrupt:  # half of it would be neither the old nor the new
        finish(folder, ready)
        raise


def finish(folder: Path, ready: Path) -> None:
    """Move the files of a ready draft up; stopped at any moment, it can be done again."""
    moving = sorted(p.name for p in ready.iterdir() if p.name not in (MANIFEST, FORGET))
    gone = [bare(name, ready) for name in read_object(ready / FORGET, list)]
    if (ready / MANIFEST).exists():
        unlist(folder, {*moving, *gone})
        for name in moving:
            (ready / name).replace(folder / name)
        for name in gone:
            (folder / name).unlink(missing_ok=True)
        (ready / MANIFEST).replace(folder / MANIFEST)
    shutil.rmtree(ready)


def unlist(folder: Path, names: set[str]) -> None:
    """Take files that are about to change off the manifest, and the verdict with them."""
    data = read_object(folder / MANIFEST, dict)
    files = data.get("files")
    if not isinstance(files, dict) or not names & set(files):
        return
    data["files"] = {name: entry for name, entry in files.items() if name not in names}
    engines = data.get("engines")
    if isinstance(engines, list):
        data["engines"] = [e for e in engines if isinstance(e, dict) and e.get("file") not in names]
    if isinstance(data.get("results"), dict):
        data["results"] = {k: v for k, v in data["results"].items() if k not in ("passed", "judged")}
    with atomic(folder / MANIFEST) as partial:
        partial.write_text(json.dumps(data, indent=2) + "\n")


def listed(folder: Path) -> set[str]:
    """Files that the manifest of a folder names, whatever else is wrong with it."""
    files = read_object(folder / MANIFEST, dict).get("files")
    return {name for name in (files if isinstance(files, dict) else ()) if is_bare(name)}


def all_listed(folder: Path) -> bool:
    """Whether a folder is an export and holds nothing else."""
    names = {*listed(folder), MANIFEST}
    return (folder / MANIFEST).is_file() and all(p.name in names or INSIDE.fullmatch(p.name) for p in folder.iterdir())


def read_object(path: Path, kind: type) -> Any:
    """The JSON object or list of a file; an empty one if there is none."""
    try:
        data = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return kind()
    return data if isinstance(data, kind) else kind()


# New folders.


@contextmanager
def new_folder_at(
    target: Path, marker: str, what: str, *, force: bool, option: str = "--output", flat: bool = False
) -> Iterator[Path]:
    """A draft that takes the place of `target` only if the body succeeds; of a link, the place it leads to.

    Args:
        target: the folder to make.
        marker: a file that folders of this kind have; a folder without it is never replaced.
        what: such a folder in words, for messages.
        force: replace an earlier one.
        option: what the target is called on the command line.
        flat: it is an export folder; where it has to stay itself, its files are replaced by those of its new manifest.

    Raises:
        UsageError: `target` exists and `force` is not given, or it is something else; or another run makes it.
        OutputError: the place cannot be written to.
    """
    with disk_errors(target):
        place = resolved(target)
        place.parent.mkdir(parents=True, exist_ok=True)
        if flat:
            begun = place.is_dir() and not (place / MANIFEST).exists()
            settled(place)
            # A killed run's export, finished just now, was not there when this command was given: it is no obstacle.
            force = force or (begun and all_listed(place))
        inside = flat and stays(place)
        check_free(target, place, marker, what, force=force, option=option)
        parent, prefix = (place, ".partial-") if inside else (place.parent, prefix_beside(place))

        def settle() -> list[Path]:
            return settle_inside(place) if inside else settle_beside(place, marker)

        with draft(parent, prefix, settle) as partial:
            yield partial
            check_free(target, place, marker, what, force=force, option=option)
            if inside:
                commit(place, partial, listed(place) - listed(partial))
            elif place.is_dir() and not any(place.iterdir()):
                partial.rename(place)
            else:
                take_place(partial, place, replaced=place.is_dir())


def check_free(target: Path, place: Path, marker: str, what: str, *, force: bool, option: str) -> None:
    """Refuse a place that is taken.

    Raises:
        UsageError: see `new_folder_at`.
    """
    shown = shortened(target)
    if place.exists() and not place.is_dir():
        raise UsageError(f"{shown} is a file. Pass another {option}.")
    if not place.is_dir() or all(INSIDE.fullmatch(path.name) for path in place.iterdir()):
        return
    if not force:
        raise UsageError(f"{shown} already exists. Pass --force to replace it, or another {option}.")
    if not (place / marker).is_file():
        raise UsageError(f"{shown} is not {what} of structsam-export; it will not be replaced.")


def stays(place: Path) -> bool:
    """Whether an existing folder cannot give its name to another one, so that its content is what is replaced."""
    if not place.is_dir():
        return False
    here = Path(os.path.realpath(Path.cwd()))
    empty = next(place.iterdir(), None) is None
    return empty or place == here or place in here.parents or is_mount(place) or not os.access(place.parent, os.W_OK)


def prefix_beside(place: Path) -> str:
    """How names of drafts beside their final name begin."""
    return f".{short(place.name)}.partial-"


def settle_beside(place: Path, marker: str = MANIFEST) -> list[Path]:
    """Put back a folder that a killed run had moved away, delete other leftovers; drafts of runs that still live."""
    put_back(place, marker)
    living = []
    for old in beside(place):
        if in_use(old):
            living.append(old)
        else:
            shutil.rmtree(old)
            note(f"Deleted {old.name}, which a killed run had left in {old.parent}.")
    return living


def beside(place: Path) -> list[Path]:
    """Drafts of a folder beside it."""
    named = re.compile(rf"{re.escape(prefix_beside(place))}{RANDOM}(\.old)?")
    with os.scandir(place.parent) as entries:
        return sorted(Path(e.path) for e in entries if named.fullmatch(e.name) and e.is_dir(follow_symlinks=False))


def put_back(place: Path, marker: str = MANIFEST) -> None:
    """Give a folder that was moved away its name again, where a run was killed between two renames."""
    if not place.parent.is_dir() or os.path.lexists(place):
        return
    for old in beside(place):
        if old.name.endswith(".old") and (old / marker).is_file() and not in_use(old):
            old.rename(place)
            note(f"Put back {place}, which a killed run had moved away.")
            return


def take_place(partial: Path, place: Path, *, replaced: bool) -> None:
    """Give a draft its final name; `replaced`: an earlier export has it, and is deleted.

    Raises:
        FileExistsError: the name is taken, and not `replaced`.
    """
    if not replaced:
        if not renamed(partial, place, _NOREPLACE):
            if os.path.lexists(place):
                raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(place))
            partial.rename(place)
        return
    if not renamed(partial, place, _EXCHANGE):
        old = partial.with_name(f"{partial.name}.old")
        place.rename(old)
        partial.rename(place)
        shutil.rmtree(old, ignore_errors=True)


def renamed(source: Path, target: Path, flag: int) -> bool:
    """Rename by Linux' renameat2: without replacing, or as an exchange; False where the system or the disk cannot."""
    if not sys.platform.startswith("linux"):
        return False
    call = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    if call is None:
        return False
    call.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]
    if call(_AT_FDCWD, os.fsencode(source), _AT_FDCWD, os.fsencode(target), flag) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP, errno.EPERM):
        return False
    raise OSError(number, os.strerror(number), str(target))
