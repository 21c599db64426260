"""TensorRT-RTX: builds engines for a chosen SM on any machine; running them needs a GPU."""

from __future__ import annotations

from typing import Any, ClassVar

from structsam_export.backends import cuda
from structsam_export.backends.base import BenchRunner, RunOptions, parts_of
from structsam_export.backends.tensorrt import TensorRT

# Built where no GPU says otherwise: Ampere and Ada, the edge GPUs of desktops and laptops.
PORTABLE = ("sm86", "sm89")


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

    def targets(self, text: str) -> tuple[str, ...]:
        if text == "auto":
            return ("current",) if cuda.has_gpu() else PORTABLE
        targets = parts_of(text, [*self.known_targets(), "current"], "TensorRT-RTX")
        if "current" in targets:
            self._check_current()
        return targets

    def known_targets(self) -> list[str]:
        """SMs that the installed library can build for."""
        import tensorrt_rtx

        names = (name.lower() for name in dir(tensorrt_rtx.ComputeCapability))
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
