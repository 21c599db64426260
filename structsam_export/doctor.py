"""What is installed here, what each backend can do, and what to install for the rest."""

from __future__ import annotations

import platform
from typing import Any


def diagnose() -> dict[str, Any]:
    """Facts for `structsam-export doctor`: {"python", "versions", "gpu", "backends": {name: {...}}}."""
    import torch

    from structsam_export.build import EXTRAS, MODULES, has_gpu, installed, known_targets
    from structsam_export.pipeline import versions

    gpu = has_gpu()
    backends: dict[str, Any] = {}
    for name in MODULES:
        here = installed(name)
        if not here:
            can, do = "nothing: not installed", f"pip install 'structsam-export[{EXTRAS[name]}]'"
        elif name == "tensorrt-rtx":
            can = "build for " + ", ".join(sorted(known_targets())) + (" and run" if gpu else "; running needs a GPU")
            do = None
        else:
            can, do = (
                ("build and run for this GPU", None) if gpu else ("nothing: no CUDA device", "run on a GPU machine")
            )
        backends[name] = {"installed": here, "can": can, "to_do": do}
    return {
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": versions(),
        "gpu": torch.cuda.get_device_name() if gpu else None,
        "backends": backends,
    }
