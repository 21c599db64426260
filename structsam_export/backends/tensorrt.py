"""TensorRT: builds engines, through polygraphy, on the GPU they run on.

Networks are strongly typed: the precision of every tensor is the graph's own. An engine's file name carries part,
backend, version and SM, as it runs on nothing else: `encoder.tensorrt-10.13.3-sm90.engine`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, ClassVar

from structsam_export.backends import cuda, plugin_library
from structsam_export.backends.base import DEFAULT, Backend, BenchRunner, Engine, Profile, Runner, RunOptions
from structsam_export.backends.polygraphy import PolygraphyRunner, hush, quiet_stdout
from structsam_export.console import progress
from structsam_export.errors import ArtifactError, MissingRuntimeError, UsageError
from structsam_export.files import atomic, disk_errors, sha256_of
from structsam_export.paths import cache_dir
from structsam_export.supervise import parsing


class TensorRT(Backend):
    """The full library; building and running need a GPU."""

    NAME: ClassVar[str] = "tensorrt"
    MODULE: ClassVar[str] = "tensorrt"
    INSTALL: ClassVar[str] = "pip install 'structsam-export[tensorrt]'"
    BY_PROFILE: ClassVar[bool] = True
    RUNNERS: ClassVar[dict[str, BenchRunner]] = {
        "tensorrt": BenchRunner("engine on this GPU, copies in and out each time"),
    }
    RTX: ClassVar[bool] = False

    def module(self) -> Any:
        """The library's Python module; imported here and nowhere before."""
        return __import__(self.MODULE)

    def version(self) -> str:
        return ".".join(self.module().__version__.split(".")[:3])

    def check_build(self) -> None:
        self.check_installed()
        if not cuda.has_gpu():
            raise MissingRuntimeError(
                "TensorRT builds engines on the GPU they run on, and no CUDA device is here. "
                "Use --backend tensorrt-rtx, which builds for a chosen SM without a GPU."
            )

    def check_run(self) -> None:
        self.check_installed()
        if not cuda.has_gpu():
            raise MissingRuntimeError(f"{self.NAME} engines run on a GPU, and no CUDA device is here.")

    def targets(self, text: str) -> tuple[str, ...]:
        if text not in ("auto", "current"):
            raise UsageError("TensorRT builds for the GPU of this machine only. Pass --target current.")
        self._check_current()
        return ("current",)

    def _check_current(self) -> None:
        if not cuda.has_gpu():
            raise MissingRuntimeError("--target current needs a GPU, and none is here. Name the SM, for example sm86.")

    def build(self, onnx: Path, folder: Path, part: str, target: str, profile: Profile) -> Engine:
        use_tensorrt(rtx=self.RTX)
        self.module()
        from polygraphy.backend.trt import Profile as Shapes
        from polygraphy.backend.trt import engine_bytes_from_network, network_from_onnx_path
        from polygraphy.exception import PolygraphyException

        version = self.version()
        sm = cuda.current_sm() if target == "current" else target
        shapes = Shapes()
        for name, (low, typical, high) in profile.items():
            shapes.add(name, low, typical, high)
        with build_progress(self.module(), f"{part} for {sm}") as monitor:
            config, options, extra = self.builder_config(target, sm, [shapes] if profile else None, monitor)
            try:
                with parsing(self.NAME, onnx), quiet_stdout():
                    network = network_from_onnx_path(str(onnx), strongly_typed=True)
                    if (plugins := plugin_layers(network[1])) > 0:
                        options = {**options, "plugin_layers": plugins}
                    engine = engine_bytes_from_network(network, config=config, **extra)
            except PolygraphyException as error:  # what is wrong, TensorRT's own log has printed
                raise ArtifactError(
                    f"{self.NAME} {version} cannot build {onnx} for {sm}: its messages are above."
                ) from error
        name = f"{part}.{self.NAME}-{version}-{sm}.engine"
        with atomic(folder / name) as partial:
            partial.write_bytes(engine)
        path = folder / name
        return Engine(name, part, self.NAME, version, sm, sha256_of(path), path.stat().st_size, options)

    def builder_config(
        self, target: str, sm: str, profiles: Any, monitor: Any
    ) -> tuple[Any, dict[str, Any], dict[str, Any]]:
        """Polygraphy's builder configuration, the options to note in the manifest, and more arguments of the build."""
        from polygraphy.backend.trt import CreateConfig

        cache = timing_cache(sm)
        loaded = str(cache) if cache.exists() else None
        config = CreateConfig(profiles=profiles, progress_monitor=monitor, load_timing_cache=loaded)
        return config, {"strongly_typed": True, "timing_cache": cache.name}, {"save_timing_cache": str(cache)}

    def fits(self, engine: Engine) -> bool:
        return engine.backend == self.NAME and engine.sm == cuda.current_sm() and self.runs_here()

    def runner(self, path: Path, label: str, options: RunOptions = DEFAULT) -> Runner:
        def make() -> Any:
            use_tensorrt(rtx=self.RTX)
            plugin_library.load_beside(self.module(), path)
            from polygraphy.backend.common import bytes_from_path
            from polygraphy.backend.trt import EngineFromBytes, TrtRunner

            load = EngineFromBytes(lambda: bytes_from_path(str(path)))
            return TrtRunner(replayed(load) if options.cuda_graph else load, name=label)

        return PolygraphyRunner(label, make)

    def load_plugins(self, packed: Path) -> None:
        plugin_library.load(self.module(), packed)

    def can(self) -> str:
        return "build and run for this GPU" if cuda.has_gpu() else "nothing: no CUDA device"


def plugin_layers(network: Any) -> int:
    """Layers of a network that a plugin computes; what no plugin is registered for was inlined or refused."""
    return sum(str(network.get_layer(i).type).endswith("PLUGIN_V3") for i in range(network.num_layers))


def replayed(load: Any) -> Any:
    """A loader of an execution context that captures the whole engine as one CUDA graph."""

    def context() -> Any:
        import tensorrt_rtx as trt

        engine = load()
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config)

    return context


def use_tensorrt(*, rtx: bool) -> None:
    """Point polygraphy at TensorRT or TensorRT-RTX; it decides once, when its backend is first imported.

    Raises:
        UsageError: this process already used the other one.
    """
    from polygraphy import config

    if "polygraphy.backend.trt" in sys.modules and rtx != config.USE_TENSORRT_RTX:
        wanted = "tensorrt-rtx" if rtx else "tensorrt"
        raise UsageError(f"One process can use one TensorRT only. Start a new one for '{wanted}'.")
    os.environ["POLYGRAPHY_USE_TENSORRT_RTX"] = "1" if rtx else "0"
    config.USE_TENSORRT_RTX = rtx
    hush()


def timing_cache(sm: str) -> Path:
    """TensorRT's tactic timings of earlier builds, shared by all exports of this user on this GPU.

    TensorRT-RTX has none: it picks kernels on the device, at first use.
    """
    root = cache_dir()
    with disk_errors(root, "set STRUCTSAM_CACHE to another folder"):
        root.mkdir(parents=True, exist_ok=True)
    return root / f"timing-{sm}.cache"


@contextmanager
def build_progress(trt: Any, title: str) -> Iterator[Any]:
    """A progress bar that follows the builder's phases; yields the monitor to hand to it."""
    with progress() as bar:
        tasks: dict[str, Any] = {}

        class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]
            def __init__(self) -> None:
                trt.IProgressMonitor.__init__(self)

            def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
                name = f"{title}: {phase_name}" if parent_phase is None else f"  {phase_name}"
                tasks[phase_name] = bar.add_task(name, total=num_steps)

            def step_complete(self, phase_name: str, step: int) -> bool:
                bar.update(tasks[phase_name], completed=step)
                return True

            def phase_finish(self, phase_name: str) -> None:
                bar.remove_task(tasks.pop(phase_name))

        yield Monitor()
