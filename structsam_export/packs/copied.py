"""This package's own code inside packs: programs for a server that needs NumPy and Pillow, and nothing of ours."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

# What such programs run of this package; beside them it is a package of its own.
RUNTIME = (
    "errors.py",
    *(f"runtime/{name}.py" for name in ("transforms", "images", "prompts", "features", "decoding")),
)
COPY = "structsam_runtime"
# Preprocessing of which those modules can do all: photos, prompts and masks. EfficientSAM takes fewer points than SAM.
OURS = ("sam", "medsam", "litemedsam")


def copy_program(room: str, name: str, target: Path) -> None:
    """A program of a folder of `packs` (`room`), whose imports lead to the copy beside it."""
    source = resources.files("structsam_export.packs") / room / f"{name}.py"
    target.write_text(moved(source.read_text(encoding="utf-8")), encoding="utf-8")


def copy_runtime(place: Path) -> None:
    """The modules that the programs use, in `place`/structsam_runtime."""
    folder = place / COPY
    folder.mkdir()
    about = '"""Photos and prompts as structsam-export computes them: a copy of some of its modules."""\n'
    (folder / "__init__.py").write_text(about, encoding="utf-8")
    for name in RUNTIME:
        code = resources.files("structsam_export").joinpath(name).read_text(encoding="utf-8")
        (folder / Path(name).name).write_text(moved(code), encoding="utf-8")


def moved(code: str) -> str:
    """Source code that imports the copy rather than the package."""
    return code.replace("structsam_export.runtime", COPY).replace("structsam_export.errors", f"{COPY}.errors")
