"""Read weights without running code from the file.

A checkpoint is recognised by its content, never by its extension, and pickled objects are refused.
"""

from __future__ import annotations

import re
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import TYPE_CHECKING, Any

from structsam_export.errors import CheckpointError
from structsam_export.models.beside import MISSING, Found, find
from structsam_export.models.sources import source_of
from structsam_export.models.unwrap import RESAVE, first, state_of
from structsam_export.reading import check_file, read_errors

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.models.reading import Stated

AGAIN = "Get the file again, or pass another one with --checkpoint."

# Plain values that training scripts keep beside weights. Nothing of theirs is made: an `Inert` takes their place.
BESIDE = (
    *("argparse.Namespace", "numpy.dtype", "numpy.ndarray", "pathlib.PosixPath", "pathlib.WindowsPath"),
    *("pathlib._local.PosixPath", "pathlib._local.WindowsPath"),
    *(f"numpy.{core}.multiarray.{name}" for core in ("core", "_core") for name in ("scalar", "_reconstruct")),
)
BOMB = 1 << 31  # bytes that a compressed file may unpack to, however small it is


@dataclass(frozen=True)
class Weights:
    """Weights as a checkpoint holds them.

    Args:
        state: CPU tensors of the file's own types, by the names of `segment_anything`'s modules.
        source: a key of `SOURCES`.
        stated: what lies beside them.
        files: where they were read from.
    """

    state: dict[str, Tensor]
    source: str
    stated: Stated
    files: tuple[Path, ...]


def read_weights(path: Path) -> Weights:
    """Read a checkpoint of any source: a file, a folder, or the index of sharded weights.

    Raises:
        CheckpointError: see `read_state_dict` and the source.
    """
    found = find(path)
    state = _state(found, path)
    source = source_of(state)
    return Weights(source.renamed(state, path), source.NAME, source.stated(found.folder), found.files)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Read safetensors or torch checkpoints into CPU tensors of the file's own types, by the file's own names.

    Wrappers such as {"model": ...} and prefixes on all names are taken off, see `unwrap`.

    Raises:
        CheckpointError: the file is missing, empty, unreadable, damaged, no checkpoint at all, holds pickled objects
            other than tensors and plain values, or holds no tensors that can be used; a folder or an index that
            lacks files or tensors.
    """
    return _state(find(path), path)


def _state(found: Found, path: Path) -> dict[str, Tensor]:
    """`read_state_dict` of files that were found already."""
    if found.placed is None:
        return state_of(_read(found.files[0]), found.files[0])
    loaded: dict[Any, Any] = {}
    for file in found.files:
        part = _read(file)
        if not isinstance(part, Mapping) or any(found.placed.get(name) != file.name for name in part):
            raise CheckpointError(f"{file} does not hold what {path} says of it. {AGAIN}")
        loaded.update(part)
    if missing := [name for name in found.placed if name not in loaded]:
        raise CheckpointError(f"{path} lists tensors that its files do not hold: {first(missing)}. {AGAIN}")
    return state_of(loaded, path)


def _read(path: Path) -> Any:
    """What a file holds."""
    head = _head(path)
    # safetensors: a 64-bit header length, then JSON.
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return _read_safetensors(path)
    if head.startswith(b"PK\x03\x04"):
        return _read_torch(path, mmap=_is_mappable(path))
    if head.startswith(b"\x80"):  # torch.save before 1.6, or a bare pickle
        return _read_torch(path, mmap=False)
    raise CheckpointError(f"{path} is not a checkpoint: {_describe(head)}")


def _head(path: Path) -> bytes:
    """The first 512 bytes."""
    with read_errors(path, "Checkpoint", CheckpointError, MISSING):
        check_file(path, "Checkpoint", CheckpointError, MISSING)
        with path.open("rb") as file:
            head = file.read(512)
    if not head:
        raise CheckpointError(f"Checkpoint {path} is empty, as after an interrupted download. {AGAIN}")
    return head


def _describe(head: bytes) -> str:
    text = head.lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return "it is a Git LFS pointer. Run `git lfs pull` where it came from."
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return "it is a web page, as when a link needs a login or has moved. Download the file itself."
    if head.startswith(b"{") and (b'"weight_map"' in head or b'"total_size"' in head):
        return "it is the index of sharded weights under another name. Pass the folder that holds it and its files."
    if head.isascii() and b"\0" not in head:
        return f"it is a text file that begins with {head[:40].decode()!r}. {AGAIN}"
    return f"it is neither safetensors nor a PyTorch file. {AGAIN}"


def _damaged(path: Path, error: Exception) -> CheckpointError:
    reason = str(error).splitlines()[0][:160] if str(error) else type(error).__name__
    return CheckpointError(
        f"Checkpoint {path} ({path.stat().st_size:,} bytes) is damaged or incomplete: {reason}. {AGAIN}"
    )


def _read_safetensors(path: Path) -> Any:
    from safetensors.torch import load_file

    try:
        return load_file(path, device="cpu")
    except MemoryError:
        raise
    except KeyError as error:
        raise CheckpointError(
            f"{path} holds numbers of type {error}, which are not supported. Pass weights in FP32, FP16 or BF16."
        ) from error
    except Exception as error:  # a SafetensorError, or what a header that claims anything leads to
        raise _damaged(path, error) from error


def _is_mappable(path: Path) -> bool:
    """Whether a torch zip can be mapped into memory; a re-zipped, compressed one would map to garbage."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except Exception as error:  # damaged archives raise anything from BadZipFile to UnicodeDecodeError
        raise _damaged(path, error) from error
    names = {entry.filename.rpartition("/")[2] for entry in entries}
    if "constants.pkl" in names:
        raise CheckpointError(f"{path} is a TorchScript program, which is refused: loading it can run code. {RESAVE}")
    if "data.pkl" not in names:
        raise CheckpointError(f"{path} is not a checkpoint: it is a zip archive without PyTorch weights. {AGAIN}")
    unpacked = sum(entry.file_size for entry in entries)
    if unpacked > max(BOMB, 100 * path.stat().st_size):
        raise CheckpointError(f"{path} would unpack to {unpacked / 1e9:.0f} GB, which is refused. {AGAIN}")
    return all(entry.compress_type == zipfile.ZIP_STORED for entry in entries)


def _read_torch(path: Path, mmap: bool) -> Any:
    import torch

    options: dict[str, Any] = {"map_location": "cpu", "weights_only": True}
    try:
        with torch.serialization.safe_globals([(Inert, name) for name in BESIDE]):
            return _loaded(path, mmap, options)
    except UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]*\w)", str(error))
        what = f"pickled Python objects ({found[1]})" if found else "pickled Python objects, or damage"
        raise CheckpointError(
            f"{path} holds {what}; running code from a checkpoint is refused, also where it lies beside weights. "
            f"{RESAVE}"
        ) from error
    except MemoryError:
        raise
    except Exception as error:  # damaged files raise whatever their bytes happen to lead to
        raise _damaged(path, error) from error


class Inert:
    """Stands for a value that is not looked at, whatever it is made and filled with."""

    def __init__(self, *_: Any) -> None:
        pass

    def __setstate__(self, _: Any) -> None:
        pass


def _loaded(path: Path, mmap: bool, options: dict[str, Any]) -> Any:
    import torch

    if path.suffix == ".safetensors":  # torch.load itself believes this extension, so hide the name
        with path.open("rb") as file:
            return torch.load(file, **options)
    return torch.load(path, mmap=mmap, **options)
