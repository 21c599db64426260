"""Folders of this user, and what folders are called."""

from __future__ import annotations

import os
import re
import tempfile
from pathlib import Path

ENDINGS = re.compile(r"(\.index\.json|\.safetensors|\.pth|\.pt|\.bin|\.ckpt)+$", re.IGNORECASE)
# What many checkpoints are called, so that the folder they are in says more.
GENERIC = re.compile(r"(py)?(torch_)?model|checkpoints?|best|last|latest|final|weights|state_dict|epoch[_-]?\d*|\d*")
LONGEST_NAME = 60  # characters


def cache_dir() -> Path:
    """$STRUCTSAM_CACHE, or ~/.cache/structsam-export; of a user without a home, in the folder for temporary files."""
    asked = Path(os.environ.get("STRUCTSAM_CACHE") or "~/.cache/structsam-export")
    try:
        return asked.expanduser()
    except RuntimeError:
        return Path(tempfile.gettempdir()) / "structsam-export"


def is_bare(name: object) -> bool:
    """Whether a value is a file name without a folder."""
    return isinstance(name, str) and name not in ("", ".", "..") and not set(name) & {"/", "\\", "\0"}


def checkpoint_name(checkpoint: str) -> str:
    """What to call a model by the path of its checkpoint: letters, digits, ".", "_" and "-" only.

    A file's name without its ending; where that says nothing ("best.pth", "model.safetensors"), its folder's name, too.
    Hugging Face's cache keeps models as models--OWNER--NAME/snapshots/COMMIT.
    """
    parts = Path(os.path.abspath(checkpoint)).parts  # noqa: PTH100 (resolve() would follow the cache's links)
    if "snapshots" in parts[-3:-1]:
        owner = parts[parts.index("snapshots", len(parts) - 3) - 1]
        return _plain(owner.removeprefix("models--"))
    stem = ENDINGS.sub("", parts[-1])
    if GENERIC.fullmatch(stem.lower()) and len(parts) > 2:
        generic_file = stem.lower() in ("model", "pytorch_model")  # a folder of Hugging Face's
        stem = parts[-2] if generic_file else f"{parts[-2]}-{stem}"
    return _plain(stem)


def _plain(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).strip("._-")[:LONGEST_NAME] or "model"
