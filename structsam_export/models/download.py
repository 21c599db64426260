"""Official weights: downloaded once, resumable, never used before their SHA-256 is right."""

from __future__ import annotations

import http.client
import json
import os
import urllib.error
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export import files
from structsam_export.errors import CheckpointError, OutputError
from structsam_export.paths import cache_dir

if TYPE_CHECKING:
    from structsam_export.models import ModelSpec

CHUNK = 1 << 20
TIMEOUT = 30  # seconds without a byte
_EFFICIENT = "Get {} from the EfficientSAM project (https://github.com/yformer/EfficientSAM) and pass"
_HQ = "Get {} from the SAM-HQ project (https://github.com/SysCV/sam-hq) and pass"
BY_HAND = {
    "medsam": "Get medsam_vit_b.pth from the MedSAM project (https://github.com/bowang-lab/MedSAM) and pass",
    **{f"sam_hq_vit_{size}": _HQ.format(f"sam_hq_vit_{size}.pth") for size in "blh"},
    "efficient_sam_ti": _EFFICIENT.format("efficient_sam_vitt.pt"),
    "efficient_sam_s": _EFFICIENT.format("efficient_sam_vits.pt (zipped there)"),
}


def sha256_of(path: Path) -> str:
    """Hex SHA-256 of a checkpoint.

    Raises:
        CheckpointError: the file cannot be read.
    """
    try:
        return files.sha256_of(path)
    except OSError as error:
        raise CheckpointError(f"Checkpoint {path} cannot be read: {error.strerror}.") from error


def fetch(spec: ModelSpec, cache: Path | None = None) -> Path:
    """The official file of a model, from the cache, from torch hub's cache or from the network.

    A download goes to `<file>.part`, which is kept for the next run if the connection breaks.

    Raises:
        CheckpointError: no official file, no network, or wrong contents.
        OutputError: the cache cannot be written.
    """
    if spec.url is None or spec.sha256 is None or spec.bytes is None:
        how = BY_HAND.get(spec.name, "Pass its weights with")
        raise CheckpointError(f"{spec.title} has no official direct download. {how} --checkpoint PATH.")
    folder = cache or cache_dir()
    target = folder / spec.url.rpartition("/")[2]
    note = target.with_name(target.name + ".sha256")
    if target.exists():
        got = _digest(target, note)
        if got != spec.sha256:
            raise CheckpointError(
                f"{target} is not the official {spec.title} file: its SHA-256 is {got}, expected {spec.sha256}. "
                "Delete it to download it again, or pass it with --checkpoint if it is what you want."
            )
        return target
    shared = _torch_hub() / target.name
    if shared.is_file() and shared.stat().st_size == spec.bytes and _digest(shared, note) == spec.sha256:
        return shared
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"Cannot create {folder}: {error.strerror}. Set STRUCTSAM_CACHE to another folder."
        ) from error
    part = target.with_name(target.name + ".part")
    _download(spec.url, spec.bytes, part, target)
    got = sha256_of(part)
    if got != spec.sha256:
        part.unlink()
        raise CheckpointError(
            f"{spec.url} was downloaded but its SHA-256 is {got}, expected {spec.sha256}; the download was discarded. "
            f"Run again, or put the right file at {target}, or pass --checkpoint PATH."
        )
    part.replace(target)
    _remember(target, note, got)
    return target


def _torch_hub() -> Path:
    """Where `torch.hub` keeps checkpoints (its own rule, without importing torch)."""
    home = os.environ.get("TORCH_HOME")
    caches = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache")
    return (Path(home) if home else caches / "torch").expanduser() / "hub" / "checkpoints"


def _digest(path: Path, note: Path) -> str:
    """SHA-256 of a file; taken from `note` if that was written for this very size and modification time."""
    stat = path.stat()
    try:
        known = json.loads(note.read_text())
        if (known["size"], known["mtime_ns"]) == (stat.st_size, stat.st_mtime_ns):
            return str(known["sha256"])
    except (OSError, ValueError, KeyError, TypeError):
        pass  # no note, or not one of ours: hash
    digest = sha256_of(path)
    _remember(path, note, digest)
    return digest


def _remember(path: Path, note: Path, digest: str) -> None:
    stat = path.stat()
    try:
        note.parent.mkdir(parents=True, exist_ok=True)
        note.write_text(json.dumps({"sha256": digest, "size": stat.st_size, "mtime_ns": stat.st_mtime_ns}) + "\n")
    except OSError:
        pass  # a read-only cache only costs hashing again


class _Broken(Exception):
    """The network or the server failed."""


def _download(url: str, size: int, part: Path, target: Path) -> None:
    """Bring `part` to `size` bytes, continuing where it ends.

    Raises:
        CheckpointError: the network failed or the server offers another file; `part` keeps what it has.
        OutputError: `part` cannot be written.
    """
    done = part.stat().st_size if part.exists() else 0
    if done == size:
        return
    try:
        with _open(url, done if done < size else 0) as response:
            start = _check_offer(response, size)
            _store(response, start, size, part, target.name)
    except _Broken as error:
        kept = part.stat().st_size if part.exists() else 0
        resume = f" The next run continues after the {kept:,} of {size:,} bytes in {part}." if kept else ""
        raise CheckpointError(
            f"Could not download {url}: {error}. Run again, or put the file at {target}, "
            f"or pass it with --checkpoint PATH.{resume}"
        ) from error


def _open(url: str, start: int) -> Any:
    """Ask for the bytes from `start` on."""
    headers = {"User-Agent": "structsam-export"}
    if start:
        headers["Range"] = f"bytes={start}-"
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT)
    except urllib.error.HTTPError as error:
        error.close()
        if error.code == 416 and start:  # range not satisfiable
            return _open(url, 0)
        raise _Broken(f"HTTP {error.code} {error.reason}") from error
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(getattr(error, "reason", None) or error)) from error


def _check_offer(response: Any, size: int) -> int:
    """The offset at which the answer begins (0 if the server ignored the range)."""
    start, total = 0, response.headers.get("Content-Length") or ""
    if response.status == 206:
        span, _, total = response.headers.get("Content-Range", "").removeprefix("bytes ").partition("/")
        first = span.partition("-")[0]
        start = int(first) if first.isdigit() else 0
    if total.isdigit() and int(total) != size:
        raise _Broken(f"the server offers {int(total):,} bytes, not {size:,} (a moved link, or a proxy's answer)")
    return start


def _store(response: Any, start: int, size: int, part: Path, title: str) -> None:
    """Write the answer into `part` from byte `start` on, with a progress bar."""
    from structsam_export.console import progress

    try:
        with part.open("r+b" if start else "wb") as file, progress(download=True) as bar:
            file.seek(start)
            task = bar.add_task(title, total=size, completed=start)
            while start < size and (piece := _read(response)):
                file.write(piece)
                start += len(piece)
                bar.update(task, completed=start)
    except OSError as error:
        raise OutputError(
            f"Cannot write {part}: {error.strerror}. Free space there, or set STRUCTSAM_CACHE to another folder."
        ) from error
    if start < size:
        raise _Broken("the connection ended early")


def _read(response: Any) -> bytes:
    try:
        return bytes(response.read(CHUNK))
    except (OSError, http.client.HTTPException) as error:
        raise _Broken(str(error) or type(error).__name__) from error
