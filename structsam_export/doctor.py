"""What is installed here, what each backend can do, and what to install for the rest."""

from __future__ import annotations

import platform
from typing import Any

from structsam_export.backends import BACKENDS, backend
from structsam_export.backends.cuda import gpu_name
from structsam_export.environment import cpu_name, usable_cores, versions


def diagnose() -> dict[str, Any]:
    """Facts for `structsam-export doctor`.

    Returns:
        "python", "platform", "versions", "cpu", "cores", "gpu" (its name or None), "backends" (name -> "installed",
        "can", "to_do") and "problems" (sentences).
    """
    found = versions()
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": found,
        "cpu": cpu_name(),
        "cores": usable_cores(),
        "gpu": gpu_name(),
        "backends": {name: status(name) for name in BACKENDS},
        "problems": problems(found),
    }


def status(name: str) -> dict[str, Any]:
    """What one backend can do here."""
    own = backend(name)
    if not own.installed():
        return {"installed": False, "can": "nothing: not installed", "to_do": own.INSTALL}
    to_do = None if own.runs_here() or own.can().startswith("build") else "run on a GPU machine"
    return {"installed": True, "can": own.can(), "to_do": to_do}


def problems(found: dict[str, str]) -> list[str]:
    """What is installed that does not go together."""
    both = {"onnxruntime", "onnxruntime-gpu"} <= found.keys()
    said = (
        "onnxruntime and onnxruntime-gpu are both installed, and share one folder: which one is imported depends on "
        "the order of installation. Run: pip uninstall onnxruntime onnxruntime-gpu, then install one of them."
    )
    return [said] if both else []
