"""Folders of this user."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path


def cache_dir() -> Path:
    """$STRUCTSAM_CACHE, or ~/.cache/structsam-export."""
    asked = Path(os.environ.get("STRUCTSAM_CACHE") or "~/.cache/structsam-export")
    try:
        return asked.expanduser()
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / "structsam-export"
