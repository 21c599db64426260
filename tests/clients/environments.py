"""An environment of its own for each program, so that none of them, GPL programs least of all, is near the package.

They are kept in $STRUCTSAM_CLIENTS, or in .pytest_cache/clients, and made anew when a line below changes.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

DEFAULT = Path(__file__).parents[2] / ".pytest_cache" / "clients"
SLOWEST = 900  # seconds an installation may take
COMMON = ("numpy>=2", "onnxruntime>=1.23", "opencv-python-headless", "pillow", "PyYAML")


@dataclass(frozen=True)
class Environment:
    """Python packages, or npm packages; `alone` are installed without what they ask for, `unpacked` beside, unused."""

    name: str
    packages: tuple[str, ...] = ()
    alone: tuple[str, ...] = ()
    unpacked: str | None = None
    npm: tuple[str, ...] = ()


ENVIRONMENTS = {
    e.name: e
    for e in (
        Environment("mit", (*COMMON, "osam==0.8.1"), alone=("samexporter==0.5.0", "segment-anything-onnx==0.0.5")),
        Environment(
            "anylabeling",
            (*COMMON, "PyQt6", "qimage2ndarray", "natsort", "imgviz", "termcolor", "onnx", "darkdetect", "osam"),
            alone=("anylabeling==0.4.43", "huggingface_hub"),
        ),
        Environment("x-anylabeling", COMMON, unpacked="x-anylabeling-cvhub==4.2.1"),
        Environment("node", npm=("@huggingface/transformers@4.3.1",)),
    )
}


def home() -> Path:
    """Where all environments are."""
    place = Path(os.environ.get("STRUCTSAM_CLIENTS", DEFAULT)).absolute()
    place.mkdir(parents=True, exist_ok=True)
    return place


def folder_of(name: str) -> Path:
    """The environment, installed; the test is skipped, with the reason, where that is not possible."""
    environment = ENVIRONMENTS[name]
    place = home() / name
    done = place / "installed"
    if not done.exists() or done.read_text() != repr(environment):
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        install(environment, place)
        done.write_text(repr(environment))
    return place


def install(environment: Environment, place: Path) -> None:
    """Run the installers."""
    if environment.npm:
        if shutil.which("npm") is None:
            pytest.skip(f"{environment.name}: npm is not installed")
        call(environment, ["npm", "install", "--no-fund", "--no-audit", "--prefix", str(place), *environment.npm])
        (place / "package.json").touch()
        return
    call(environment, [sys.executable, "-m", "venv", str(place)])
    pip = [str(place / "bin" / "python"), "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    call(environment, [*pip, *environment.packages])
    if environment.alone:
        call(environment, [*pip, "--no-deps", *environment.alone])
    if environment.unpacked:
        call(environment, [*pip, "--no-deps", "--target", str(place / "unpacked"), environment.unpacked])


def call(environment: Environment, command: list[str]) -> None:
    """Run an installer; where it fails, the test is skipped with its last words."""
    variables = {**os.environ, "ONNXRUNTIME_NODE_INSTALL": "skip"}
    variables.pop("PYTHONPATH", None)
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=SLOWEST, env=variables)
    except subprocess.TimeoutExpired:
        pytest.skip(f"{environment.name} cannot be installed: {' '.join(command[:4])} took too long")
    if ran.returncode:
        lines = (ran.stderr or ran.stdout).strip().splitlines()[-3:]
        pytest.skip(f"{environment.name} cannot be installed: {' '.join(lines)}")
