"""OpenVINO: runs the FP32 graph on CPUs in the precision that suits them, from IR files that it writes.

The graph stays FP32; the runtime computes in f32, or in bf16 or f16 where the processor has instructions for them. What
it really uses is read back from the compiled model. A file's name carries part, version and precision:
`encoder.openvino-2026.4.1-bf16.xml`, with its weights in the `.bin` beside it.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.backends.base import DEFAULT, Backend, BenchRunner, Engine, Profile, Runner, RunOptions, parts_of
from structsam_export.errors import ArtifactError, MissingRuntimeError
from structsam_export.files import scratch, sha256_of, staged_files
from structsam_export.supervise import parsing

if TYPE_CHECKING:
    from structsam_export.backends.base import Array

# Targets -> OpenVINO's capability of a processor that computes in it, what parity calls it.
PRECISIONS = {"f32": ("FP32", "fp32"), "bf16": ("BF16", "bf16"), "f16": ("FP16", "fp16")}
RT_INFO = ["structsam_export", "precision"]


@lru_cache(maxsize=1)
def core() -> Any:
    """The runtime; one for each process."""
    import openvino

    return openvino.Core()


class OpenVINORunner(Runner):
    """A compiled model with one request; `precision` is the one it was compiled for, once it is open."""

    def __init__(self, path: Path, name: str, how: RunOptions) -> None:
        super().__init__(name)
        self.path, self.how = path, how
        self.precision: str | None = how.precision
        self._request: Any = None

    def open(self) -> None:
        model = read(self.path)
        own = {name for port in model.outputs for name in port.names}
        for name in self.how.outputs:
            # Decisions that were folded into constants have no tensor of their name any more.
            if name not in own and holds(model, name):
                model.add_outputs(name)
        chosen = self.precision or written_for(model) or fastest()
        with parsing("OpenVINO", self.path):
            compiled = compiled_model(model, chosen, self.how.threads)
        self.precision = chosen
        self.inputs = {
            port.any_name: tuple(0 if size.is_dynamic else size.get_length() for size in port.partial_shape)
            for port in compiled.inputs
        }
        self._request = compiled.create_infer_request()

    def infer(self, feed: Mapping[str, Array]) -> dict[str, Array]:
        import numpy as np

        began = time.perf_counter()
        self._request.infer(dict(feed), share_inputs=True)
        self.seconds = time.perf_counter() - began
        model = self._request.model_outputs
        return {name: np.array(self._request.get_tensor(port).data) for port in model for name in [self._name(port)]}

    def _name(self, port: Any) -> str:
        """The name of an output: its tensor may have several, of which one was asked for or was the ONNX file's."""
        names = set(port.get_names())
        asked = next((name for name in self.how.outputs if name in names), None)
        written: str = port.get_node().get_friendly_name().removesuffix("/sink_port_0")
        return asked or (written if written in names else port.get_any_name())

    def close(self) -> None:
        self._request = None


class OpenVINO(Backend):
    """Intel's runtime; also runs on CPUs of others."""

    NAME: ClassVar[str] = "openvino"
    MODULE: ClassVar[str] = "openvino"
    INSTALL: ClassVar[str] = "pip install 'structsam-export[openvino]'"
    FORM = "openvino"
    FROM_FP32: ClassVar[bool] = True
    TELLS_DECISIONS: ClassVar[bool] = True
    RUNNERS: ClassVar[dict[str, BenchRunner]] = {
        "openvino": BenchRunner("FP32 graph on OpenVINO in the CPU's fastest precision", onnx=True, fp32=True),
        **{
            f"openvino-{name}": BenchRunner(f"the same in {name}", RunOptions(precision=name), onnx=True, fp32=True)
            for name in PRECISIONS
        },
    }

    def version(self) -> str:
        import openvino

        return ".".join(openvino.__version__.split("-")[0].split(".")[:3])

    def check_run(self) -> None:
        self.check_installed()

    def check_precision(self, precision: str) -> None:
        """Refuse a precision that this processor has no instructions for.

        Raises:
            MissingRuntimeError: with those it has.
        """
        self.check_installed()
        if precision not in precisions_here():
            raise MissingRuntimeError(
                f"This processor computes in {', '.join(precisions_here())}, not in {precision}. Files for it can be "
                "built here and run elsewhere."
            )

    def check_options(self, options: RunOptions) -> None:
        self.check_installed()
        if options.precision is not None:
            self.check_precision(options.precision)

    def targets(self, text: str) -> tuple[str, ...]:
        return (fastest(),) if text == "auto" else parts_of(text, tuple(PRECISIONS), "OpenVINO")

    def build(self, onnx: Path, folder: Path, part: str, target: str, profile: Profile) -> Engine:
        import openvino

        from structsam_export.rewrite import apply_form

        version = self.version()
        name = f"{part}.{self.NAME}-{version}-{target}.xml"
        path = folder / name
        with scratch("structsam-openvino-") as aside, staged_files(folder) as partial:
            # The same numbers, in the shapes that this runtime has kernels for.
            formed = aside / onnx.name
            apply_form(onnx, formed, self.FORM)
            model = read(formed)
            model.set_rt_info(target, RT_INFO)
            openvino.save_model(model, str(partial / name), compress_to_fp16=target == "f16")
        with parsing("OpenVINO", path):
            used = used_precision(compiled_model(read(path), target)) if target in precisions_here() else None
        size = path.stat().st_size + path.with_suffix(".bin").stat().st_size
        return Engine(name, part, self.NAME, version, target, sha256_of(path), size, {"computes_in": used})

    def fits(self, engine: Engine) -> bool:
        return engine.backend == self.NAME and self.installed() and engine.sm in precisions_here()

    def runner(self, path: Path, label: str, options: RunOptions = DEFAULT) -> Runner:
        self.check_options(options)
        return OpenVINORunner(path, label, options)

    def decided_runner(self, onnx: Path, engine: Engine) -> Runner:
        return self.runner(onnx, "engine", RunOptions(precision=engine.sm))

    def precision(self, engine: Engine, exported: str) -> str:
        used: str = engine.options.get("computes_in") or engine.sm
        return PRECISIONS[used][1]

    def can(self) -> str:
        return f"build for {', '.join(PRECISIONS)}; run in {', '.join(precisions_here())} on this CPU"


def read(path: Path) -> Any:
    """A model from an IR or ONNX file; local functions, which OpenVINO does not read, are inlined.

    Raises:
        ArtifactError: OpenVINO cannot read it.
    """
    from structsam_export.fused import without_functions

    try:
        with without_functions(path) as plain, parsing("OpenVINO", path):
            return core().read_model(str(plain))
    except RuntimeError as error:
        raise ArtifactError(f"OpenVINO cannot read {path}: {str(error).strip().splitlines()[-1]}") from error


def compiled_model(model: Any, precision: str, threads: int | None = None) -> Any:
    """A model compiled for one request at a time on this CPU.

    Raises:
        ArtifactError: OpenVINO cannot compile it.
    """
    config: dict[str, Any] = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": precision,
        "NUM_STREAMS": 1,
    }
    if threads is not None:
        config["INFERENCE_NUM_THREADS"] = threads
    try:
        return core().compile_model(model, "CPU", config)
    except RuntimeError as error:
        raise ArtifactError(f"OpenVINO cannot compile the graph: {str(error).strip().splitlines()[-1]}") from error


def used_precision(compiled: Any) -> str:
    """The precision that a compiled model's products are computed in, read from its executable graph."""
    names = {"f32": "f32", "bf16": "bf16", "f16": "f16"}
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind = str(info["layerType"].astype(str)) if "layerType" in info else ""
        if kind in ("FullyConnected", "MatMul"):
            text = str(info["runtimePrecision"].astype(str))
            return names.get(text.lower(), text)
    return str(compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name())


def written_for(model: Any) -> str | None:
    """The precision that `build` wrote into an IR; None for other files."""
    return str(model.get_rt_info(RT_INFO).astype(str)) if model.has_rt_info(RT_INFO) else None


def holds(model: Any, name: str) -> bool:
    """Whether a model has a tensor of this name."""
    return any(name in port.get_names() for op in model.get_ops() for port in op.outputs())


def precisions_here() -> tuple[str, ...]:
    """Precisions that this processor computes in, by OpenVINO's own account."""
    capabilities = core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name, (theirs, _) in PRECISIONS.items() if theirs in capabilities)


def fastest() -> str:
    """The precision that is fastest on this processor: bf16 where it has that, else f16, else f32."""
    here = precisions_here()
    return next(name for name in ("bf16", "f16", "f32") if name in here)
