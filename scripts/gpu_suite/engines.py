"""Engines of TensorRT-RTX and TensorRT: built with the package's own code, run for parity and for latency."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_suite import DRY_TARGET, NOT_MEASURED, Options
from gpu_suite.exports import folder_of, inputs_of, parity
from gpu_suite.fused import ENDING, register
from gpu_suite.timing import measure, outputs

if TYPE_CHECKING:
    from torch import Tensor


def probe(options: dict[str, Any], backend: str) -> dict[str, Any]:
    """Build an engine of two nodes for this GPU, and run it: does this backend know this SM at all?"""
    import numpy as np
    import onnx
    from onnx.helper import make_graph, make_model, make_node, make_opsetid, make_tensor_value_info

    from gpu_suite.package import backend_of, run

    given = Options.from_dict(options)
    runtime: Any = backend_of(backend)
    folder = folder_of(given, "probe", backend)
    ends = [make_tensor_value_info(name, onnx.TensorProto.FLOAT, [4, 4]) for name in ("x", "y")]
    nodes = [make_node("MatMul", ["x", "x"], ["square"]), make_node("Relu", ["square"], ["y"])]
    graph = make_graph(nodes, "probe", [ends[0]], [ends[1]])
    onnx.save(make_model(graph, opset_imports=[make_opsetid("", 18)], ir_version=10), folder / "probe.onnx")
    with native_errors():
        engine = runtime.build(folder / "probe.onnx", folder, "encoder", target(given), {})
    found: dict[str, Any] = {"version": engine.version, "sm": engine.sm}
    if backend == "tensorrt-rtx":
        found["targets"] = runtime.known_targets()
    if given.dry_run:
        return {**found, "executed": NOT_MEASURED}
    x = np.random.default_rng(0).normal(size=(4, 4)).astype(np.float32)
    with native_errors():
        made, _ = run(runtime.runner(folder / engine.file, "probe"), [{"x": x}], lambda _: None)
    error = float(np.abs(made[0]["y"] - np.maximum(x @ x, 0)).max())
    if not error < 1e-3:
        raise ValueError(f"the engine runs but its result is off by {error:g}")
    return {**found, "executed": True, "max_abs": error}


@contextmanager
def native_errors() -> Iterator[None]:
    """Put what TensorRT said into the exception: polygraphy's own says only that something failed.

    The package silences polygraphy's logger, through which TensorRT speaks, so its function for errors is replaced.
    """
    from polygraphy.logger import G_LOGGER

    said: list[str] = []
    G_LOGGER.error = lambda message, *_, **__: said.append(str(message() if callable(message) else message))
    try:
        yield
    except Exception as error:
        if not said:
            raise
        raise RuntimeError(f"{error}: {' / '.join(said)}".replace("\n", " ")) from error
    finally:
        del G_LOGGER.error


def target(options: Options) -> str:
    """This GPU, or what a dry run builds for."""
    return DRY_TARGET if options.dry_run else "current"


def build(options: dict[str, Any], model: str, method: str, form: str, precision: str, backend: str) -> dict[str, Any]:
    """Build the engine of one ONNX file.

    Raises:
        ValueError: no plugin computes anything of a form that has their operators.
    """
    from gpu_suite.package import atomic, backend_of

    given = Options.from_dict(options)
    if form.endswith(ENDING):
        register(given, backend)
    folder = folder_of(given, model, method)
    began = time.perf_counter()
    source = folder / f"{form}.{precision}.onnx"
    with native_errors():
        engine = backend_of(backend).build(source, folder, f"{form}-{precision}", target(given), {})
    seconds = round(time.perf_counter() - began, 1)
    with atomic(record_of(folder, form, precision, backend)) as partial:
        partial.write_text(json.dumps(engine.to_dict()))
    found = {"file": engine.file, "bytes": engine.bytes, "sm": engine.sm, "build_seconds": seconds}
    if not form.endswith(ENDING):
        return found
    if not engine.options.get("plugin_layers"):
        raise ValueError("no layer of this engine is a plugin")
    return {**found, "plugin_layers": engine.options["plugin_layers"]}


def record_of(folder: Path, form: str, precision: str, backend: str) -> Path:
    """Where `build` notes which file an engine is, and its hash."""
    return folder / f"{form}-{precision}.{backend}.json"


def built(folder: Path, form: str, precision: str, backend: str) -> Path:
    """The engine file of `build`; engines are code, so one with another hash is refused."""
    from gpu_suite.package import sha256_of

    record = json.loads(record_of(folder, form, precision, backend).read_text())
    path: Path = folder / record["file"]
    if sha256_of(path) != record["sha256"]:
        raise ValueError(f"{path} is not the engine that was built")
    return path


def execute(
    options: dict[str, Any],
    model: str,
    method: str,
    form: str,
    precision: str,
    backend: str,
    cuda_graph: bool,
) -> dict[str, Any]:
    """Time an engine, and compare what it makes of the photos with eager PyTorch."""
    import torch

    given = Options.from_dict(options)
    path = built(folder_of(given, model, method), form, precision, backend)
    images = [torch.as_tensor(ready.tensor) for ready in inputs_of(given, model).prepared]
    if form.endswith(ENDING):
        register(given, backend)
    began = time.perf_counter()
    call, memory = session(path, backend, cuda_graph)
    loaded = round(time.perf_counter() - began, 2)
    timed = measure(call, images[0], given.runs)
    agreed = parity(given, model, method, outputs(call, images))
    return {"latency": timed, "parity": agreed, "load_seconds": loaded, "activation_bytes": memory}


def package_runner(
    options: dict[str, Any], model: str, method: str, form: str, precision: str, backend: str, cuda_graph: bool
) -> dict[str, Any]:
    """Run an engine as the package itself does; a step of its own, as it can fail on its own."""
    from gpu_suite.package import RunOptions, backend_of, run

    given = Options.from_dict(options)
    path = built(folder_of(given, model, method), form, precision, backend)
    runner = backend_of(backend).runner(path, path.stem, RunOptions(cuda_graph=cuda_graph))
    with native_errors():
        made, _ = run(runner, inputs_of(given, model).feeds(1), lambda _: None)
    return {"parity": parity(given, model, method, [o["image_embeddings"] for o in made])}


def session(path: Path, backend: str, cuda_graph: bool) -> tuple[Callable[[Tensor], Tensor], int]:
    """An engine as a function of a tensor on the GPU, on PyTorch's current stream; and the bytes it works in.

    The embedding is one buffer that each call fills anew: a captured CUDA graph writes to fixed addresses.
    """
    import torch

    from gpu_suite.package import backend_of

    own: Any = backend_of(backend)
    trt = own.module()
    runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
    engine = runtime.deserialize_cuda_engine(path.read_bytes())
    if engine is None:
        raise RuntimeError(f"{backend} cannot load {path.name} here")
    if cuda_graph:
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        context = engine.create_execution_context(config)
    else:
        context = engine.create_execution_context()
    if context is None:
        raise RuntimeError(f"{backend} cannot make an execution context for {path.name}")
    embedding = torch.empty(tuple(engine.get_tensor_shape("image_embeddings")), device="cuda")
    context.set_tensor_address("image_embeddings", embedding.data_ptr())
    # An engine does not outlive its runtime, nor a context its engine.
    alive = runtime, engine

    def call(image: Tensor) -> Tensor:
        assert alive
        context.set_tensor_address("image", image.data_ptr())
        if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
            raise RuntimeError(f"{path.name} failed to run")
        return embedding

    return call, int(engine.device_memory_size_v2)


def onnxruntime_probe(options: dict[str, Any], provider: str) -> dict[str, Any]:
    """Whether this ONNX Runtime has what it is to be measured with."""
    from gpu_suite.package import PROVIDERS, RunOptions, backend_of

    wanted = provider_of(Options.from_dict(options), provider)
    backend_of("onnxruntime").check_options(RunOptions(provider=wanted))
    return {"provider": PROVIDERS[wanted]}


def provider_of(options: Options, provider: str) -> str:
    """The provider to run: the one asked for, or in a dry run that of the CPU."""
    return "cpu" if options.dry_run else provider


def onnxruntime(
    options: dict[str, Any], model: str, method: str, form: str, precision: str, provider: str
) -> dict[str, Any]:
    """An ONNX file on a provider of ONNX Runtime ("cuda", "tensorrt"), or in a dry run twice on the CPU."""
    import torch

    given = Options.from_dict(options)
    path = folder_of(given, model, method) / f"{form}.{precision}.onnx"
    active = ort_session(path, provider_of(given, provider))
    images = [ready.tensor for ready in inputs_of(given, model).prepared]
    embeddings = [active.run(["image_embeddings"], {"image": image})[0] for image in images]
    agreed = parity(given, model, method, embeddings)
    if given.dry_run:
        return {"latency": on_cpu(active, images[0]), "parity": agreed}
    embedding = torch.empty(embeddings[0].shape, device="cuda")
    binding = active.io_binding()
    binding.bind_output("image_embeddings", "cuda", 0, "float32", embedding.shape, embedding.data_ptr())

    def call(image: Tensor) -> Tensor:
        # The provider runs on a stream of its own, which PyTorch's events do not see: both ends wait.
        torch.cuda.current_stream().synchronize()
        binding.bind_input("image", "cuda", 0, "float32", image.shape, image.data_ptr())
        active.run_with_iobinding(binding)
        binding.synchronize_outputs()
        return embedding

    return {"latency": measure(call, torch.as_tensor(images[0]), given.runs), "parity": agreed}


def ort_session(path: Path, provider: str) -> Any:
    """A session on one provider; what TensorRT leaves out runs on CUDA."""
    import onnxruntime as ort

    from gpu_suite.package import PROVIDERS

    log = ort.SessionOptions()
    log.log_severity_level = 3
    wanted = [PROVIDERS[name] for name in ((provider, "cuda") if provider == "tensorrt" else (provider,))]
    active = ort.InferenceSession(str(path), log, providers=wanted)
    if active.get_providers()[0] != wanted[0]:  # falls back to the CPU in silence
        raise RuntimeError(f"onnxruntime cannot use {wanted[0]} here")
    return active


def on_cpu(active: Any, image: Any, runs: int = 2) -> dict[str, Any]:
    """Latency of a session on the CPU; one warm-up."""
    from gpu_suite.package import interleaved, percentiles

    taken = interleaved({"run": lambda: active.run(["image_embeddings"], {"image": image})}, runs)
    return percentiles(taken["run"])
