"""Weights in several files, and what lies beside them: folders, shards and JSON."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from structsam_export.console import printable
from structsam_export.errors import CheckpointError, shortened
from structsam_export.paths import is_bare
from structsam_export.reading import check_file, read_errors
from structsam_export.schema import Misfit, check, require

MISSING = "does not exist. Check the path given with --checkpoint."
INDEX = ".index.json"
# What a folder's weights are called, in order of preference.
WEIGHTS = ("model.safetensors", f"model.safetensors{INDEX}", "pytorch_model.bin", f"pytorch_model.bin{INDEX}")
ENDINGS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt")
SHARD = re.compile(r"-\d{5}-of-(\d{5})\.")
ADAPTERS = ("adapter_config.json", "adapter_model.safetensors", "adapter_model.bin")
LARGEST_JSON = 1 << 24  # bytes
MOST_SHARDS = 256


@dataclass(frozen=True)
class Found:
    """Files of one checkpoint.

    Args:
        files: its weights, one or several.
        folder: where they are, and what lies beside them.
        placed: of sharded weights, the file of each tensor; None for one file.
    """

    files: tuple[Path, ...]
    folder: Path
    placed: dict[str, str] | None = None


def find(path: Path) -> Found:
    """The files behind a path: a file, a folder of weights, or the index of sharded ones.

    Raises:
        CheckpointError: nothing there, a folder without weights or with several, or an index that cannot be used.
    """
    with read_errors(path, "Checkpoint", CheckpointError, MISSING):
        if path.is_dir():
            path = _in_folder(path)
        check_file(path, "Checkpoint", CheckpointError, MISSING)
        if path.name.endswith(INDEX):
            return _sharded(path)
    if (part := SHARD.search(path.name)) and part[1] != "00001":
        raise CheckpointError(f"{path} is one of {int(part[1])} files of sharded weights. Pass the folder they are in.")
    return Found((path,), path.parent)


def _in_folder(folder: Path) -> Path:
    """The weights in a folder."""
    names = sorted(p.name for p in folder.iterdir())
    for name in WEIGHTS:
        if name in names:
            return folder / name
    if any(name in names for name in ADAPTERS):
        raise CheckpointError(
            f"{folder} holds LoRA weights alone. Merge them into the model (merge_and_unload() of peft), save it with "
            "save_pretrained, and pass that folder."
        )
    every = [name for name in names if name.endswith(ENDINGS)]
    if len(every) == 1:
        return folder / every[0]
    shown = ", ".join(shortened(printable(name)) for name in (every or names)[:8]) or "nothing"
    raise CheckpointError(
        f"{folder} is a folder without {WEIGHTS[0]}, {WEIGHTS[2]} or an index of sharded weights; it holds {shown}. "
        "Pass the checkpoint file inside it."
    )


def _sharded(index: Path) -> Found:
    """The files that an index names, all of them beside it."""
    data = read_object(index)
    try:
        require(data, ("weight_map",), index.name)
        check(data, {"weight_map": {str: str}}, index.name)
    except Misfit as error:
        raise CheckpointError(f"{index} is no index of sharded weights: {error}. Get it again.") from None
    placed: dict[str, str] = data["weight_map"] if data else {}
    names = sorted(set(placed.values()))
    for name in names:
        if not is_bare(name):
            raise CheckpointError(f"{index} names a file {shortened(repr(name))}, which is no plain file name.")
    if not 1 <= len(names) <= MOST_SHARDS:
        raise CheckpointError(f"{index} names {len(names)} files, not 1 to {MOST_SHARDS}.")
    return Found(tuple(index.parent / name for name in names), index.parent, placed)


def read_object(path: Path) -> dict[str, Any] | None:
    """A JSON file that lies beside weights, as an object; None if there is no such file.

    Raises:
        CheckpointError: unreadable, larger than such files are, or no JSON object.
    """
    with read_errors(path, "File", CheckpointError):
        if not path.exists():
            return None
        check_file(path, "File", CheckpointError)
        with path.open("rb") as file:
            content = file.read(LARGEST_JSON + 1)
    try:
        if len(content) > LARGEST_JSON:
            raise ValueError(f"more than {LARGEST_JSON:,} bytes")
        data = json.loads(content.decode("utf-8"))
        if not isinstance(data, dict):
            raise ValueError("not an object")
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} cannot be read as JSON ({shortened(error)}). Get it again.") from None
    return data
