"""Encoder latency of the stages on this machine's CPU."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from structsam_export.backends import backend
from structsam_export.console import stage
from structsam_export.eager import timed_encoder
from structsam_export.folder import companion
from structsam_export.timing import interleaved, percentiles
from structsam_export.unmerged import unmerged_beside

if TYPE_CHECKING:
    from structsam_export.folder import ExportFolder
    from structsam_export.job import Job
    from structsam_export.validate.parity import Validation

# Above this, two encoders side by side would cost too much memory; latency then comes from the validation runs.
INTERLEAVE_LIMIT = 1_000_000_000
ROUNDS = 7
UNMERGED = "onnx_unmerged"


def latency(found: Validation, job: Job, folder: ExportFolder, *, weights_freed: bool) -> dict[str, Any]:
    """Encoder latency in milliseconds of one batch on this machine's CPU, by stage.

    Small models are timed in interleaved rounds; where that would not fit in memory, the validation runs' own times
    are given (`interleaved` says which). "onnx_unmerged" is the stock encoder, rewritten, on the same runtime: timed
    where its export lies beside the folder (`unmerged`), so that merging is not mixed up with the runtime.

    Args:
        found: the stages that ran.
        job: the model.
        folder: its files.
        weights_freed: the PyTorch model is gone.
    """
    # FP16 has no kernels on a CPU: its FP32 reference is timed instead.
    final = folder.fp32_encoder()
    weights = final.stat().st_size
    beside = companion(final.name) in folder.manifest.files
    if weights_freed or weights > INTERLEAVE_LIMIT or beside:
        return {name: percentiles(s.seconds) | {"interleaved": False} for name, s in found.stages.items()}
    feed = found.reference.inputs.feeds(job.config.batch)[0]
    ort = backend("onnxruntime")
    with ExitStack() as active, stage("encoder latency, interleaved"):
        raw, rewritten = (active.enter_context(ort.runner(p, p.name)) for p in (folder.raw("encoder"), final))
        calls: dict[str, Callable[[], object]] = {
            "dense": timed_encoder(job.loaded, None, feed["image"]),
            "eager": timed_encoder(job.loaded, job.schedule, feed["image"], feed.get("boxes")),
            "onnx_raw": lambda: raw.infer(feed),
            "onnx" if job.config.precision == "fp32" else "onnx_fp32": lambda: rewritten.infer(feed),
        }
        if (unmerged := unmerged_beside(folder)) is not None:  # loaded, not traced: a fifth more of this stage
            plain = active.enter_context(ort.runner(unmerged.onnx("encoder"), UNMERGED))
            calls[UNMERGED] = lambda: plain.infer({"image": feed["image"]})
        if (pair := folder.engines_here()) is not None:
            engine = active.enter_context(pair.backend.runner(folder.verified(pair.encoder.file), "engine"))
            calls["engine"] = lambda: engine.infer(feed)
        timed = interleaved(calls, ROUNDS if weights < INTERLEAVE_LIMIT // 10 else 2)
    return {name: percentiles(taken) | {"interleaved": True} for name, taken in timed.items()}
