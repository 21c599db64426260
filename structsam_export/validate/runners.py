"""The stages as polygraphy runners: eager PyTorch, ONNX Runtime, TensorRT."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.build import hush_polygraphy, use_backend

if TYPE_CHECKING:
    from torch import nn


def eager_runner(module: nn.Module, names: Sequence[str], label: str, *, boxes: bool = False) -> Any:
    """A PyTorch module as a runner on the CPU (polygraphy's own needs CUDA); `boxes`: it also takes a prompt."""
    hush_polygraphy()
    import numpy as np
    import torch
    from polygraphy.backend.base import BaseRunner
    from polygraphy.common import TensorMetadata

    class EagerRunner(BaseRunner):  # type: ignore[misc]
        def infer_impl(self, feed_dict: dict[str, Any]) -> dict[str, Any]:
            with torch.no_grad():
                began = time.perf_counter()
                outputs = module(*(torch.as_tensor(v) for v in feed_dict.values()))
                self.inference_time = time.perf_counter() - began
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return {name: value.numpy() for name, value in zip(names, outputs)}

        def get_input_metadata_impl(self) -> Any:
            known = TensorMetadata().add("image", dtype=np.float32, shape=(-1, 3, -1, -1))
            return known.add("boxes", dtype=np.float32, shape=(-1, 4)) if boxes else known

    return EagerRunner(name=label)


def ort_runner(path: Path, label: str) -> Any:
    """An ONNX file as a runner on ONNX Runtime's CPU provider."""
    hush_polygraphy()
    from polygraphy.backend.onnxrt import OnnxrtRunner, SessionFromOnnx

    return OnnxrtRunner(SessionFromOnnx(str(path), providers=["cpu"]), name=label)


def engine_runner(path: Path, backend: str, label: str, *, cuda_graph: bool = False) -> Any:
    """An engine as a runner on this machine's GPU; `path` must come from `Manifest.verified`.

    `cuda_graph`: the whole engine is captured once and replayed (TensorRT-RTX).
    """
    use_backend(backend)
    from polygraphy.backend.common import bytes_from_path
    from polygraphy.backend.trt import EngineFromBytes, TrtRunner

    load = EngineFromBytes(lambda: bytes_from_path(str(path)))
    if not cuda_graph:
        return TrtRunner(load, name=label)

    def context() -> Any:
        import tensorrt_rtx as trt

        engine = load()
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config)

    return TrtRunner(context, name=label)


def run(
    runner: Any, feeds: Sequence[dict[str, Any]], say: Callable[[str], None]
) -> tuple[list[dict[str, Any]], list[float]]:
    """Run a runner over all feeds, telling `say` how far it is; returns the outputs and the seconds each took."""
    outputs, seconds = [], []
    with runner:
        for i, feed in enumerate(feeds):
            say(f"{runner.name} {i + 1}/{len(feeds)}")
            outputs.append({k: _copy(v) for k, v in runner.infer(feed).items()})
            seconds.append(float(runner.last_inference_time()))
    return outputs, seconds


def _copy(value: Any) -> Any:
    """Runners reuse their buffers."""
    import numpy as np

    return np.array(value)
