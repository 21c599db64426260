"""Wheels that lie beside the suite: cut into parts that can be carried, joined and installed without an index."""

from __future__ import annotations

import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

# Below 64 MiB, with room for whatever wraps a part on its way.
PART_BYTES = 60 << 20
PART = re.compile(r"(?P<wheel>.+\.whl)\.part(?P<number>[0-9]+)")


def split(folder: Path, limit: int = PART_BYTES) -> list[Path]:
    """Replace every wheel of a folder that is larger than `limit` by NAME.whl.part0, NAME.whl.part1, ..."""
    made = []
    for wheel in sorted(folder.glob("*.whl")):
        if wheel.stat().st_size <= limit:
            continue
        with wheel.open("rb") as source:
            for number, piece in enumerate(iter(lambda: source.read(limit), b"")):
                part = wheel.with_name(f"{wheel.name}.part{number}")
                part.write_bytes(piece)
                made.append(part)
        wheel.unlink()
    return made


def join(folder: Path, target: Path) -> list[Path]:
    """Put the parts of every split wheel together again in `target`; the folder itself may be read-only.

    Raises:
        ValueError: a part is missing.
    """
    parts: dict[str, dict[int, Path]] = defaultdict(dict)
    for path in folder.iterdir():
        if found := PART.fullmatch(path.name):
            parts[found["wheel"]][int(found["number"])] = path
    made = []
    for name, numbered in sorted(parts.items()):
        if missing := set(range(max(numbered) + 1)) - set(numbered):
            raise ValueError(f"{folder / name} lacks part {min(missing)}. Carry all its parts over.")
        target.mkdir(parents=True, exist_ok=True)
        with (target / name).open("wb") as whole:
            for number in sorted(numbered):
                whole.write(numbered[number].read_bytes())
        made.append(target / name)
    return made


def install(folder: Path, joined: Path) -> dict[str, object]:
    """Install every wheel of a folder with pip, without an index.

    Where a dependency was not carried, the wheels go in without dependencies: what is there already may do.

    Raises:
        ValueError: there are no wheels, or a part of one is missing.
        RuntimeError: pip refused; with the last line it wrote.
    """
    wheels = [*sorted(folder.glob("*.whl")), *join(folder, joined)]
    if not wheels:
        raise ValueError(f"{folder} holds no wheels. Fill it with pip download, or leave --wheels away.")
    places = [option for place in (folder, joined) for option in ("--find-links", str(place))]
    command = [sys.executable, "-m", "pip", "install", "--disable-pip-version-check", "--no-index", *places]
    said = ""
    for extra in ([], ["--no-deps"]):
        done = subprocess.run([*command, *extra, *map(str, wheels)], capture_output=True, text=True)
        if done.returncode == 0:
            return {"wheels": [w.name for w in wheels], "dependencies": not extra, "pip": said}
        said = (done.stderr.strip().splitlines() or ["no message"])[-1]
    raise RuntimeError(f"pip: {said}")
