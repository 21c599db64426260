"""Latency on a GPU: copies in, work and copies out of one run after another, by CUDA events."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

WARM_UP_RUNS, WARM_UP_SECONDS = 10, 0.5


def measure(call: Callable[[Tensor], Tensor], image: Tensor, runs: int) -> dict[str, Any]:
    """Time `call`, image on the GPU -> embedding on the GPU, on a stream of its own.

    Args:
        call: enqueues its work on PyTorch's current stream. It gets the same tensor each time.
        image: float32 on the CPU.
        runs: timed runs, each after the one before has ended: latency, not throughput.

    Returns:
        p50, p90, p99 in ms and n of the work alone, and the same of "copy_in", "copy_out" (pinned memory) and "wall"
        (all three as the host sees them); "first_ms" is the first run, in which kernels may still be compiled.
    """
    import torch

    from gpu_suite.package import percentiles

    pinned, inside = image.pin_memory(), image.cuda()
    stream = torch.cuda.Stream()
    taken: dict[str, list[float]] = {"run": [], "copy_in": [], "copy_out": [], "wall": []}
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), torch.no_grad():
        began = time.perf_counter()
        embedding = call(inside)
        stream.synchronize()
        first = time.perf_counter() - began
        outside = torch.empty(embedding.shape, dtype=embedding.dtype, pin_memory=True)
        warm = 0
        while warm < WARM_UP_RUNS or time.perf_counter() - began < first + WARM_UP_SECONDS:
            call(inside)
            stream.synchronize()
            warm += 1
        for _ in range(runs):
            events = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
            began = time.perf_counter()
            events[0].record(stream)
            inside.copy_(pinned, non_blocking=True)
            events[1].record(stream)
            embedding = call(inside)
            events[2].record(stream)
            outside.copy_(embedding, non_blocking=True)
            events[3].record(stream)
            stream.synchronize()
            taken["wall"].append(time.perf_counter() - began)
            for name, start, end in zip(("copy_in", "run", "copy_out"), events, events[1:]):
                taken[name].append(start.elapsed_time(end) / 1e3)
    rows = {name: percentiles(seconds) for name, seconds in taken.items()}
    return {**rows.pop("run"), **rows, "first_ms": round(first * 1e3, 3)}


def outputs(call: Callable[[Tensor], Tensor], images: Sequence[Tensor]) -> list[np.ndarray]:
    """What `call` makes of each image; through one buffer and on a stream of its own, as CUDA graphs want it."""
    import torch

    inside, made = images[0].cuda(), []
    stream = torch.cuda.Stream()
    torch.cuda.synchronize()
    with torch.cuda.stream(stream), torch.no_grad():
        for image in images:
            inside.copy_(image)
            made.append(call(inside).cpu().numpy())
    return made
