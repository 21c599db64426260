"""Values that tests compare with a file. `UPDATE_SNAPSHOTS=1 pytest -n 0 ...` writes the file anew; read its diff."""

from __future__ import annotations

import json
import os


def check_snapshot(path, key, value):
    """`value` (plain JSON) is what the file `path` holds under `key`."""
    stored = json.loads(path.read_text()) if path.exists() else {}
    if os.environ.get("UPDATE_SNAPSHOTS"):
        path.write_text(json.dumps(dict(sorted((stored | {key: value}).items())), indent=1) + "\n")
        return
    assert stored.get(key) == value, f"{path.name} differs; if that is meant, run once with UPDATE_SNAPSHOTS=1 -n 0"
