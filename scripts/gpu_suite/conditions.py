"""What a measurement was made with; found, not changed: clocks stay as they are."""

from __future__ import annotations

import csv
import shutil
import subprocess
from typing import Any

QUERY = (
    "name",
    "driver_version",
    "memory.total",
    "memory.used",
    "clocks.sm",
    "clocks.mem",
    "clocks.max.sm",
    "clocks.max.mem",
    "power.limit",
    "power.draw",
    "temperature.gpu",
    "pstate",
    "mig.mode.current",
)
MODULES = ("torch", "tensorrt", "tensorrt_rtx", "onnxruntime", "onnx", "polygraphy", "triton")


def gpu_state() -> dict[str, str]:
    """nvidia-smi's own words about the first GPU; empty without nvidia-smi."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=30)
    rows = list(csv.reader(done.stdout.splitlines(), skipinitialspace=True))
    return dict(zip(QUERY, rows[0])) if done.returncode == 0 and rows else {}


def conditions() -> dict[str, Any]:
    """GPU, driver, CUDA, versions, CPU and date."""
    import datetime
    import os
    import platform

    import torch

    import structsam_export
    from gpu_suite.package import cpu_name

    found: dict[str, Any] = {
        "date": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "gpu": None,
        "nvidia_smi": gpu_state(),
        "cuda_torch": torch.version.cuda,
        "cpu": cpu_name(),
        "cores": os.cpu_count(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "versions": {"structsam_export": structsam_export.__version__, **module_versions()},
    }
    if torch.cuda.is_available():
        properties = torch.cuda.get_device_properties(0)
        found["gpu"] = properties.name
        found["gpus"] = torch.cuda.device_count()
        found["sm"] = "{}{}".format(*torch.cuda.get_device_capability(0))
        found["multiprocessors"] = properties.multi_processor_count
        found["memory_bytes"] = properties.total_memory
        found["cudnn"] = torch.backends.cudnn.version()
    if "onnxruntime" in found["versions"]:
        import onnxruntime

        found["onnxruntime_providers"] = onnxruntime.get_available_providers()
    return found


def module_versions() -> dict[str, str]:
    """Versions of the modules that can be imported; of one that cannot, why not."""
    from importlib import import_module, util

    from gpu_suite.package import rtx_library

    found = {}
    for name in MODULES:
        if util.find_spec(name) is None:
            continue
        try:
            # Not imported any other way than the package's: its parser ends processes that meet plugins otherwise.
            module = rtx_library() if name == "tensorrt_rtx" else import_module(name)
            found[name] = str(module.__version__)
        except (ImportError, OSError, AttributeError) as error:  # a library of it may be missing
            found[name] = f"not importable: {error}"
    return found
