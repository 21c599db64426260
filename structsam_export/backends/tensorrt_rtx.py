"""TensorRT-RTX: builds engines for a chosen SM on any machine; running them needs a GPU."""

from __future__ import annotations

import atexit
import ctypes
import shutil
import sys
import tempfile
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar

from structsam_export.backends import cuda
from structsam_export.backends.base import BenchRunner, RunOptions, parts_of
from structsam_export.backends.tensorrt import TensorRT

# The wheel has these with a version in the name only; its parser opens the first without one when it meets a plugin,
# and ends the process when that is missing.
LIBRARIES = {"libtensorrt_rtx.so": "libtensorrt_rtx.so.1", "libtensorrt_onnxparser_rtx.so.1": ""}
# Built where no GPU says otherwise: Ampere and Ada, the edge GPUs of desktops and laptops.
PORTABLE = ("sm86", "sm89")


@lru_cache(maxsize=1)
def library() -> Any:
    """The module `tensorrt_rtx`, its libraries loaded from a folder that has all the names they look for."""
    if "tensorrt_rtx_bindings" not in sys.modules and (found := find_spec("tensorrt_rtx_libs")) is not None:
        wheel = Path(next(iter(found.submodule_search_locations or [""])))
        if all((wheel / (real or name)).is_file() for name, real in LIBRARIES.items()):
            folder = Path(tempfile.mkdtemp(prefix="structsam-rtx-"))
            atexit.register(shutil.rmtree, folder, ignore_errors=True)
            for name, real in LIBRARIES.items():
                (folder / name).symlink_to(wheel / (real or name))
            for name in LIBRARIES:
                ctypes.CDLL(str(folder / name))
    return import_module("tensorrt_rtx")


class TensorRTRTX(TensorRT):
    """The library for desktop GPUs; `strongly_typed` networks, kernels picked on the device at first use."""

    NAME: ClassVar[str] = "tensorrt-rtx"
    MODULE: ClassVar[str] = "tensorrt_rtx"
    INSTALL: ClassVar[str] = "pip install 'structsam-export[rtx]'"
    RUNNERS: ClassVar[dict[str, BenchRunner]] = {
        "tensorrt-rtx": BenchRunner("engine on this GPU, copies in and out each time"),
        "tensorrt-rtx-graph": BenchRunner("engine as one CUDA graph, copies included", RunOptions(cuda_graph=True)),
    }
    RTX: ClassVar[bool] = True

    def check_build(self) -> None:
        self.check_installed()

    def module(self) -> Any:
        return library()

    def targets(self, text: str) -> tuple[str, ...]:
        if text == "auto":
            return ("current",) if cuda.has_gpu() else PORTABLE
        targets = parts_of(text, [*self.known_targets(), "current"], "TensorRT-RTX")
        if "current" in targets:
            self._check_current()
        return targets

    def known_targets(self) -> list[str]:
        """SMs that the installed library can build for."""
        names = (name.lower() for name in dir(library().ComputeCapability))
        return sorted(name for name in names if name.startswith("sm"))

    def builder_config(
        self, target: str, sm: str, profiles: Any, monitor: Any
    ) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        from polygraphy.backend.tensorrt_rtx import CreateConfigRTX

        chosen = {"use_gpu": True} if target == "current" else {"compute_capabilities": [(int(sm[2:-1]), int(sm[-1]))]}
        config = CreateConfigRTX(profiles=profiles, progress_monitor=monitor, **chosen)
        return config, {"strongly_typed": True, "target": target}, {}

    def can(self) -> str:
        build = "build for " + ", ".join(self.known_targets())
        return build + (" and run" if cuda.has_gpu() else "; running needs a GPU")
