"""Folders of this user."""

from __future__ import annotations

import os
from pathlib import Path


def cache_dir() -> Path:
    """$STRUCTSAM_CACHE, or ~/.cache/structsam-export."""
    return Path(os.environ.get("STRUCTSAM_CACHE") or "~/.cache/structsam-export").expanduser()
