"""Encoder latency of the stages on this machine's CPU."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

from structsam_export.artifact import fp32_encoder
from structsam_export.benchmark.timing import interleaved, percentiles
from structsam_export.console import stage
from structsam_export.patch import prompted
from structsam_export.validate.runners import ort_runner
from structsam_export.validate.stages import Validation, feeds_of

if TYPE_CHECKING:
    from structsam_export.models import LoadedModel
    from structsam_export.schedule import Schedule

# Above this, two encoders side by side would cost too much memory; latency then comes from the validation runs.
INTERLEAVE_LIMIT = 1_000_000_000
ROUNDS = 7


def measure_latency(
    found: Validation, loaded: LoadedModel | None, schedule: Schedule, folder: Path, batch: int
) -> None:
    """Encoder latency in milliseconds of one batch on this machine's CPU.

    Small models are timed in interleaved rounds; where that would not fit in memory, the validation runs' own times
    are given (`interleaved` says which).
    """
    # FP16 has no kernels on a CPU: its FP32 reference is timed instead.
    final = fp32_encoder(folder).name
    weights = (folder / final).stat().st_size
    if loaded is None or weights > INTERLEAVE_LIMIT or (folder / f"{final}.data").exists():
        found.latency = {name: percentiles(s.seconds) | {"interleaved": False} for name, s in found.stages.items()}
        return
    import torch

    feed = feeds_of(found.photos[:1], found.prepared[:1], batch, schedule.prompt_aware)[0]
    image = torch.as_tensor(feed["image"])
    boxes = torch.as_tensor(feed["boxes"]) if schedule.prompt_aware else None
    encoder = loaded.sam.image_encoder

    def eager_dense() -> None:
        with torch.no_grad():
            encoder(image)

    def eager_patched() -> None:
        with torch.no_grad(), schedule.patched(encoder), prompted(encoder, boxes):
            encoder(image)

    with ExitStack() as active, stage("encoder latency, interleaved"):
        raw, rewritten = (active.enter_context(ort_runner(folder / file, file)) for file in ("encoder.raw.onnx", final))
        calls = {
            "dense": eager_dense,
            "eager": eager_patched,
            "onnx_raw": lambda: raw.infer(feed),
            "onnx" if final == "encoder.onnx" else "onnx_fp32": lambda: rewritten.infer(feed),
        }
        timed = interleaved(calls, ROUNDS if weights < INTERLEAVE_LIMIT // 10 else 2)
    found.latency = {name: percentiles(taken) | {"interleaved": True} for name, taken in timed.items()}
