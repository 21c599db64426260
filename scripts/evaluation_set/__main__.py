"""Remake the bundled evaluation set: pictures, masks, sources.json and SHA256SUMS.

    scripts/demo_model/fetch_pictures.sh DIR
    python scripts/evaluation_set DIR [FOLDER] [--sheet SHEET.jpg]

Needs Pillow and NumPy; DIR gives the cut-outs and the unpacked packages. Writes into the package unless FOLDER is
given. Everything is drawn from fixed seeds; with the versions named in CREDITS.md, beside the set, the files come out
byte for byte. Cut-outs are the ones that scripts/demo_model holds out, and no background is trained on either.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from pathlib import Path

sys.path[0] = str(Path(__file__).parents[1])  # jobs import each other by the names of their folders


def main() -> None:
    from evaluation_set.files import ASSETS, PARTS, checksums, contact_sheet, make_real
    from evaluation_set.scenes import make_scenes
    from evaluation_set.sources import Sources

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="DIR of fetch_pictures.sh")
    parser.add_argument("folder", type=Path, nargs="?", default=ASSETS / "evaluation", help="where the set goes")
    parser.add_argument("--sheet", type=Path, help="also draw a picture of some of the set")
    given = parser.parse_args()
    sources = Sources(given.data)
    for old in PARTS:
        shutil.rmtree(given.folder / old, ignore_errors=True)
    make_real(sources, given.folder)
    used = {"schema": 1, "scenes": make_scenes(sources, given.folder)}
    (given.folder / "sources.json").write_text(json.dumps(used, indent=1) + "\n")
    (given.folder / "SHA256SUMS").write_text(checksums(given.folder))
    if given.sheet:
        contact_sheet(given.folder, given.sheet)


if __name__ == "__main__":
    main()
