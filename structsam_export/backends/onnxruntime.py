"""ONNX Runtime: runs the ONNX files themselves, on a CPU or, where its GPU package is installed, through CUDA."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.backends.base import DEFAULT, Backend, BenchRunner, Engine, Profile, Runner, RunOptions
from structsam_export.errors import MissingRuntimeError, UsageError
from structsam_export.reading import content_errors
from structsam_export.supervise import parsing

if TYPE_CHECKING:
    from structsam_export.backends.base import Array

# What options and runners call a provider -> its name in ONNX Runtime.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
}


class SessionRunner(Runner):
    """A session."""

    def __init__(self, path: Path, name: str, how: RunOptions) -> None:
        super().__init__(name)
        self.path, self.how = path, how
        self._session: Any = None

    def open(self) -> None:
        import onnxruntime as ort

        options = ort.SessionOptions()
        options.log_severity_level = 3
        if self.how.threads is not None:
            options.intra_op_num_threads = self.how.threads
            # Threads that spin on after a run would take the cores from the variant whose turn is next.
            options.add_session_config_entry("session.force_spinning_stop", "1")
        if self.how.profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(self.how.profile / "profile")
        with content_errors(self.path), parsing("ONNX Runtime", self.path):
            self._session = ort.InferenceSession(str(self.path), options, providers=[PROVIDERS[self.how.provider]])
        self.inputs = {
            i.name: tuple(n if isinstance(n, int) else 0 for n in i.shape) for i in self._session.get_inputs()
        }

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        names = [o.name for o in self._session.get_outputs()]
        began = time.perf_counter()
        with content_errors(self.path), parsing("ONNX Runtime", self.path):
            values = self._session.run(names, dict(feed))
        self.seconds = time.perf_counter() - began
        return dict(zip(names, values))

    def close(self) -> None:
        self._session = None

    def profile(self) -> list[dict[str, Any]]:
        events = json.loads(Path(self._session.end_profiling()).read_text())
        return [event for event in events if event.get("cat") == "Node"]


class OnnxRuntime(Backend):
    """Builds nothing: the portable ONNX files are what it runs."""

    NAME: ClassVar[str] = "onnxruntime"
    MODULE: ClassVar[str] = "onnxruntime"
    INSTALL: ClassVar[str] = "pip install onnxruntime"
    BUILDS: ClassVar[bool] = False
    CONCURRENT: ClassVar[bool] = True
    RUNNERS: ClassVar[dict[str, BenchRunner]] = {
        "ort-cpu": BenchRunner("ONNX in FP32 on ONNX Runtime's CPU provider", onnx=True, fp32=True),
        "ort-cuda": BenchRunner(
            "ONNX on its CUDA provider, copies in and out each time", RunOptions(provider="cuda"), onnx=True
        ),
        "ort-tensorrt": BenchRunner(
            "ONNX on its TensorRT provider, copies included", RunOptions(provider="tensorrt"), onnx=True
        ),
    }

    def version(self) -> str:
        import onnxruntime

        return str(onnxruntime.__version__)

    def check_run(self) -> None:
        self.check_installed()

    def providers(self) -> list[str]:
        """Providers of the installed package, by our names."""
        import onnxruntime

        here = onnxruntime.get_available_providers()
        return [name for name, theirs in PROVIDERS.items() if theirs in here]

    def check_provider(self, provider: str) -> None:
        """Refuse a provider that the installed package lacks.

        Raises:
            MissingRuntimeError: with what to install.
        """
        self.check_installed()
        if provider not in self.providers():
            title = {"cuda": "CUDA", "tensorrt": "TensorRT"}.get(provider, provider)
            raise MissingRuntimeError(
                f"This onnxruntime has no {title} provider. Run: pip uninstall onnxruntime; pip install "
                "'structsam-export[gpu]' (onnxruntime-gpu takes the place of onnxruntime; never install both)."
            )

    def check_options(self, options: RunOptions) -> None:
        self.check_provider(options.provider)

    def targets(self, text: str) -> tuple[str, ...]:
        if text != "auto":
            raise UsageError("ONNX Runtime runs the ONNX files themselves and builds nothing. Leave --target away.")
        return ()

    def build(self, onnx: Path, folder: Path, part: str, target: str, profile: Profile) -> Engine:
        raise UsageError("ONNX Runtime runs the ONNX files themselves. There is nothing to build.")

    def fits(self, engine: Engine) -> bool:
        return False

    def runner(self, path: Path, label: str, options: RunOptions = DEFAULT) -> Runner:
        self.check_options(options)
        return SessionRunner(path, label, options)

    def can(self) -> str:
        return "run ONNX files: " + ", ".join(self.providers())
