"""The machine and the versions that a result was made with."""

from __future__ import annotations

import os
import platform
from importlib import metadata
from pathlib import Path

from structsam_export import __version__

PACKAGES = ("torch", "segment-anything", "onnx", "onnxscript", "onnxruntime", "onnx-graphsurgeon", "polygraphy")
OPTIONAL = ("onnxruntime-gpu", "openvino", "tensorrt", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12")


def versions() -> dict[str, str]:
    """Versions of what takes part in an export, by package; packages that are not installed are left out."""
    found = {"structsam-export": __version__}
    for name in (*PACKAGES, *OPTIONAL):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def usable_cores() -> int:
    """Cores this process may use: in a container or under taskset, fewer than the machine has."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def cpu_name() -> str:
    """The processor's name as the system tells it."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
