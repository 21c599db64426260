"""Output folders: written all or nothing, and described by a manifest that later stages check before they read.

`manifest.json` names every finished file with its SHA-256. A file it does not name does not exist for us; a file
whose hash differs is refused. Engines are code: they are loaded through `Manifest.verified` only.
"""

from __future__ import annotations

import errno
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from structsam_export.config import ExportConfig, read_json
from structsam_export.errors import ArtifactError, OutputError, UsageError

MANIFEST = "manifest.json"
_NO_SPACE = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_NO_ACCESS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EEXIST)


def fp32_encoder(folder: Path) -> Path:
    """The rewritten encoder in FP32: beside `encoder.onnx` where that has another precision."""
    reference = folder / "encoder.fp32.onnx"
    return reference if reference.exists() else folder / "encoder.onnx"


def sha256_of(path: Path) -> str:
    """SHA-256 of a file, as hex."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


@dataclass
class Manifest:
    """What an output folder holds.

    `files` maps a name to {"sha256", "bytes"}; `engines` lists one record per engine; `model` describes the
    checkpoint (name, sha256, geometry); `versions` the libraries that took part.
    """

    config: ExportConfig
    model: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    engines: list[dict[str, Any]] = field(default_factory=list)
    results: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def read(cls, folder: Path) -> Manifest:
        """Read the manifest of an output folder.

        Raises:
            ArtifactError: no manifest, or not ours.
        """
        data = read_json(folder / MANIFEST)
        try:
            return cls(
                config=ExportConfig.from_dict(data["config"]),
                **{k: data[k] for k in ("model", "versions", "files", "engines", "results")},
            )
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{folder / MANIFEST} lacks {error}. Export again with --force.") from None

    def write(self, folder: Path) -> None:
        """Write the manifest, replacing an earlier one in one step."""
        with atomic(folder / MANIFEST) as partial:
            data = {**vars(self), "config": self.config.to_dict()}
            partial.write_text(json.dumps(data, indent=2) + "\n")

    def add(self, folder: Path, *names: str) -> None:
        """Record finished files."""
        for name in names:
            path = folder / name
            self.files[name] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}

    def add_onnx(self, folder: Path, name: str) -> None:
        """Record an ONNX file and, where there is one, its weights."""
        self.add(folder, *(n for n in (name, f"{name}.data") if (folder / n).exists()))

    def verified(self, folder: Path, name: str) -> Path:
        """Path of a recorded file that still has its recorded hash (and, for ONNX, its weights file too).

        Raises:
            ArtifactError: not recorded, missing, or changed.
        """
        if name not in self.files:
            raise ArtifactError(f"{folder / MANIFEST} lists no {name}. Run the stage that makes it first.")
        for part in (n for n in (name, f"{name}.data") if n in self.files):
            path = folder / part
            if not path.exists():
                raise ArtifactError(f"{path} is listed in the manifest but missing. Export again with --force.")
            if sha256_of(path) != self.files[part]["sha256"]:
                raise ArtifactError(
                    f"{path} was changed after the manifest was written (SHA-256 differs). Restore it, or export again "
                    "with --force."
                )
        return folder / name


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
def atomic(path: Path) -> Iterator[Path]:
    """Write a file under a temporary name; it gets its own name only if the body succeeds."""
    partial = path.with_name(f".{path.name}.partial")
    try:
        with disk_errors(path.parent):
            yield partial
            partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


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


@contextmanager
def staged_folder(target: Path, *, force: bool) -> Iterator[Path]:
    """A temporary folder beside `target` that takes its place only if the body succeeds.

    Raises:
        UsageError: `target` exists and `force` is not given, or is not one of our folders.
        OutputError: the place cannot be written to.
    """
    if target.exists() and not target.is_dir():
        raise UsageError(f"{target} is a file. Pass another --output.")
    occupied = target.is_dir() and any(target.iterdir())
    if occupied and not force:
        raise UsageError(f"{target} already exists. Pass --force to replace it, or another --output.")
    if occupied and not (target / MANIFEST).exists():
        raise UsageError(f"{target} is not an output folder of structsam-export; it will not be replaced.")
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
