"""Remake the bundled photos: JPEGs, masks and prompts.json, from the images inside scikit-image.

    python scripts/photos [FOLDER]

Needs scikit-image; writes into the package unless FOLDER is given. CREDITS.md, beside the photos, names sources,
licences and the versions that made the files.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # jobs import each other by the names of their folders
FOLDER = Path(__file__).resolve().parents[2] / "structsam_export" / "assets" / "photos"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=FOLDER, help="where the photos go")
    target = parser.parse_args().folder

    from photos.prompts import PHOTOS
    from photos.store import store

    target.mkdir(parents=True, exist_ok=True)
    table = {"schema": 1, "photos": [store(name, target) for name in PHOTOS]}
    (target / "prompts.json").write_text(json.dumps(table, indent=1) + "\n")


if __name__ == "__main__":
    main()
