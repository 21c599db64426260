"""One encoder in a process of its own, so that its peak memory and its threads are its own.

It reads lines of JSON and answers each with one line: first the variant to load, then "run", "profile", until its input
ends.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from structsam_export.errors import ArtifactError, StructSAMError


def main() -> None:
    """Answer requests until there are no more; whatever a library prints goes to stderr."""
    import os

    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    spec = json.loads(sys.stdin.readline())
    pin(spec["threads"])
    load = {"eager": load_eager, "ort-cpu": load_ort, "ort-cuda": load_ort}.get(spec["runner"], load_engine)
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
    from structsam_export.validate.photos import bundled_photos, prompt_box

    image = shapes.get("image", ())
    if set(shapes) - {"image", "boxes"} or len(image) != 4 or not all(isinstance(n, int) for n in image):
        given = ", ".join(f"{name} {list(shape)}" for name, shape in shapes.items())
        raise ArtifactError(f"its inputs are {given}; an encoder takes image [batch, 3, size, size] of fixed size.")
    photo = bundled_photos(1)[0]
    batch, _, size, _ = image
    ready = prepare(photo.image, size)
    feed = {"image": np.repeat(ready.tensor, batch, 0)}
    if "boxes" in shapes:
        feed["boxes"] = np.repeat(prompt_box(photo.prompts[0], ready.scale), batch, 0)
    return feed


def load_ort(spec: dict[str, Any]) -> tuple[Callable[[], object], Callable[[], list[Any]]]:
    """A session; `profile` ends it and gives its events."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.intra_op_num_threads = spec["threads"]
    # Threads that spin on after a run would take the cores from the variant whose turn is next.
    options.add_session_config_entry("session.force_spinning_stop", "1")
    if spec.get("profile"):
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(spec["profile"]) / "profile")
    provider = "CUDAExecutionProvider" if spec["runner"] == "ort-cuda" else "CPUExecutionProvider"
    session = ort.InferenceSession(spec["file"], options, providers=[provider])
    feed = inputs_of({i.name: tuple(i.shape) for i in session.get_inputs()})
    outputs = [session.get_outputs()[0].name]

    def events() -> list[Any]:
        found = json.loads(Path(session.end_profiling()).read_text())
        return [e for e in found if e.get("cat") == "Node"]

    return lambda: session.run(outputs, feed), events


def load_eager(spec: dict[str, Any]) -> tuple[Callable[[], object], Callable[[], list[Any]]]:
    """The patched PyTorch encoder of an output folder.

    Raises:
        ArtifactError: the checkpoint is not the one that was exported.
    """
    import torch

    from structsam_export.artifact import Manifest
    from structsam_export.patch import apply_roles, prompted
    from structsam_export.pipeline import Job

    torch.set_num_threads(spec["threads"])
    folder = Path(spec["file"])
    job = Job.of_folder(folder, Manifest.read(folder))
    encoder, size = job.loaded.sam.image_encoder, job.loaded.geometry.image_size
    shapes: dict[str, tuple[int, ...]] = {"image": (job.config.batch, 3, size, size)}
    if job.schedule.prompt_aware:
        shapes["boxes"] = (job.config.batch, 4)
    feed = {k: torch.as_tensor(v) for k, v in inputs_of(shapes).items()}
    apply_roles(encoder, job.schedule.roles)

    def call() -> object:
        with torch.no_grad(), prompted(encoder, feed.get("boxes")):
            return encoder(feed["image"])

    return call, list


def load_engine(spec: dict[str, Any]) -> tuple[Callable[[], object], Callable[[], list[Any]]]:
    """An engine on this GPU, as it is or replayed as one CUDA graph."""
    from structsam_export.validate.runners import engine_runner

    backend = spec["runner"].removesuffix("-graph")
    runner = engine_runner(Path(spec["file"]), backend, spec["name"], cuda_graph=spec["runner"] != backend)
    runner.activate()
    feed = inputs_of({name: tuple(m.shape) for name, m in runner.get_input_metadata().items()})
    return lambda: runner.infer(feed), list
