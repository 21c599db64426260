"""One encoder in a process of its own, so that its peak memory and its threads are its own.

It reads lines of JSON and answers each with one line: first the variant to load, then "run", "profile", until its input
ends.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

from structsam_export.benchmark.variants import EAGER
from structsam_export.errors import ArtifactError, StructSAMError


def main() -> None:
    """Answer requests until there are no more; whatever a library prints goes to stderr."""
    import os

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec = json.loads(sys.stdin.readline())
    pin(spec["threads"])
    load = load_eager if spec["runner"] == EAGER else load_file
    ready: dict[str, Any] = {"loaded": True}
    try:
        call, finish = load(spec)
    except StructSAMError as error:  # told to the parent, which knows the variant
        ready = {"error": str(error)}
    except Exception as error:
        ready = {"error": f"{type(error).__name__}: {error}"}
    print(json.dumps(ready), file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        if request == "profile":
            reply: dict[str, Any] = {"events": finish()}
        else:
            reply = measured(call)
        print(json.dumps(reply), file=answers, flush=True)


def pin(threads: int) -> None:
    """Keep this process on the first `threads` cores it may use, where the system allows that."""
    import os

    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:threads])


def measured(call: Callable[[], object]) -> dict[str, Any]:
    """Seconds of one call, and bytes at its peak: of the whole process, and above what it held before."""
    import psutil

    before = psutil.Process().memory_info().rss
    reset_peak()
    began = time.perf_counter()
    call()
    seconds = time.perf_counter() - began
    peak = peak_memory()
    return {"seconds": seconds, "peak": peak, "activations": max(0, peak - before)}


def reset_peak() -> None:
    """Let the kernel's record of this process' largest size begin anew (Linux)."""
    path = Path("/proc/self/clear_refs")
    if path.exists():
        path.write_text("5")


def peak_memory() -> int:
    """Largest resident size in bytes, since `reset_peak` on Linux, else since the process began."""
    status = Path("/proc/self/status")
    if status.exists():
        return next(int(line.split()[1]) << 10 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
    import resource

    largest = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return largest if sys.platform == "darwin" else largest << 10


def inputs_of(shapes: dict[str, tuple[int, ...]]) -> dict[str, Any]:
    """The first bundled photo, and its first prompt where boxes are asked for, repeated to the batch.

    Raises:
        ArtifactError: not the inputs of an encoder.
    """
    import numpy as np

    from structsam_export.runtime.images import prepare
    from structsam_export.runtime.photos import bundled_photos
    from structsam_export.runtime.prompts import prompt_box

    image = shapes.get("image", ())
    if set(shapes) - {"image", "boxes"} or len(image) != 4 or not all(image):
        given = ", ".join(f"{name} {[n or '?' for n in shape]}" for name, shape in shapes.items())
        raise ArtifactError(f"its inputs are {given}; an encoder takes image [batch, 3, size, size] of fixed size.")
    photo = bundled_photos(1)[0]
    batch, _, size, _ = image
    ready = prepare(photo.image, size)
    feed = {"image": np.repeat(ready.tensor, batch, 0)}
    if "boxes" in shapes:
        feed["boxes"] = np.repeat(prompt_box(photo.prompts[0], ready.scale), batch, 0)
    return feed


def load_file(spec: dict[str, Any]) -> tuple[Callable[[], object], Callable[[], list[Any]]]:
    """An ONNX file or an engine in a runner of its backend; `profile` ends it and gives its events."""
    from structsam_export.backends import backend, bench_runners

    name, how = bench_runners()[spec["runner"]]
    profile = Path(spec["profile"]) if spec.get("profile") else None
    options = replace(how.options, threads=spec["threads"], profile=profile)
    runner = backend(name).runner(Path(spec["file"]), spec["name"], options)
    runner.open()
    feed = inputs_of(runner.inputs)
    return lambda: runner.infer(feed), runner.profile


def load_eager(spec: dict[str, Any]) -> tuple[Callable[[], object], Callable[[], list[Any]]]:
    """The patched PyTorch encoder of an export folder.

    Raises:
        ArtifactError: the checkpoint is not the one that was exported.
    """
    import torch

    from structsam_export.eager import encoder_call
    from structsam_export.folder import ExportFolder
    from structsam_export.job import Job

    torch.set_num_threads(spec["threads"])
    job = Job.of_folder(ExportFolder.read(Path(spec["file"])))
    size = job.loaded.geometry.image_size
    shapes: dict[str, tuple[int, ...]] = {"image": (job.config.batch, 3, size, size)}
    if job.schedule.prompt_aware:
        shapes["boxes"] = (job.config.batch, 4)
    feed = inputs_of(shapes)
    active = ExitStack()  # patched once, for as long as the call is held
    encode = active.enter_context(encoder_call(job.loaded, job.schedule, feed.get("boxes")))

    def call(patch: ExitStack = active) -> object:
        return encode(feed["image"])

    return call, list
