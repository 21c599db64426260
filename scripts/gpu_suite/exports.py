"""Models, photos, reference embeddings, and the ONNX files that are measured.

Files of a model and method in the work folder: `reference.npz`; `plain.fp32.onnx` (the stock encoder as PyTorch's
exporter writes it) and `rewritten.fp32.onnx` for method none, `merged.fp32.onnx` for any other; and the same in fp16.
"""

from __future__ import annotations

import time
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_suite import Options

if TYPE_CHECKING:
    import numpy as np

    from gpu_suite.package import Inputs, LoadedModel, Schedule


def forms(method: str) -> tuple[str, ...]:
    """Which encoders a method is measured as."""
    return ("plain", "rewritten") if method == "none" else ("merged",)


def folder_of(options: Options, model: str, method: str) -> Path:
    """Where the files of one model and method lie."""
    folder = Path(options.work) / f"{model}-{method}"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def load(options: Options, model: str) -> LoadedModel:
    """A model on the CPU; the last one is kept, as one step after another uses it."""
    return _load(model, options.checkpoints.get(model), options.random and model != "demo")


@lru_cache(maxsize=1)
def _load(model: str, checkpoint: str | None, random: bool) -> LoadedModel:
    from gpu_suite.package import load_model

    if not random:
        return load_model(model, Path(checkpoint) if checkpoint else None)
    return random_model(model)


def random_model(model: str) -> LoadedModel:
    """A model's geometry with random weights: latency needs no others, masks would mean nothing."""
    import torch
    from segment_anything import sam_model_registry

    from gpu_suite.package import LoadedModel, geometry_of, model_spec

    spec = model_spec(model)
    torch.manual_seed(0)
    sam = sam_model_registry[spec.architecture](checkpoint=None).eval().requires_grad_(False)
    for name, weights in sam.image_encoder.named_parameters():
        if "pos" in name:  # zero at first: the exporter or a runtime could fold them away
            torch.nn.init.normal_(weights, std=0.1)
    return LoadedModel(spec, sam, Path("random weights"), "random weights", geometry_of(sam.image_encoder))


def schedule_of(options: Options, model: str, method: str) -> Schedule:
    """The method in every block it is meant for, at the rate asked for."""
    from gpu_suite.package import ExportConfig, resolve

    rate = None if method == "none" else options.rate
    return resolve(ExportConfig(model=model, method=method, rate=rate), load(options, model).geometry)


def inputs_of(options: Options, model: str) -> Inputs:
    """The first bundled photos, as they are and as the encoder takes them."""
    from gpu_suite.package import Inputs, bundled_photos

    loaded, photos = load(options, model), bundled_photos(options.photos)
    return Inputs.of(photos, loaded.geometry.image_size, loaded.spec.preprocessing, prompt_aware=False)


def tf32(allowed: bool) -> None:
    """Let PyTorch's FP32 products round their factors to TF32, or not; its default is a mixture of both."""
    import torch

    torch.backends.cuda.matmul.allow_tf32 = allowed
    torch.backends.cudnn.allow_tf32 = allowed


def reference(options: dict[str, Any], model: str, method: str) -> dict[str, Any]:
    """Embeddings of the photos by eager PyTorch in FP32 without TF32; on the CPU where the GPU refuses.

    Merged methods are compared with their own patched model: what merging costs in quality is another question.
    """
    import numpy as np
    import torch

    given = Options.from_dict(options)
    encoder = load(given, model).sam.image_encoder
    images = [torch.as_tensor(ready.tensor) for ready in inputs_of(given, model).prepared]
    schedule, why = schedule_of(given, model, method), None
    tf32(False)
    for device in ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",):
        try:
            with torch.no_grad(), schedule.patched(encoder.to(device)):
                made = [encoder(image.to(device)).cpu().numpy() for image in images]
            break
        except RuntimeError as error:
            if device == "cpu":
                raise
            why = str(error).splitlines()[0]
        finally:
            encoder.to("cpu")
    np.savez(folder_of(given, model, method) / "reference.npz", *made)
    return {"photos": len(images), "device": device, "gpu_refused": why}


def references(options: Options, model: str, method: str) -> list[np.ndarray] | None:
    """What `reference` stored, if it did."""
    import numpy as np

    path = folder_of(options, model, method) / "reference.npz"
    if not path.exists():
        return None
    with np.load(path, allow_pickle=False) as stored:
        return [stored[name] for name in stored.files]


def parity(options: Options, model: str, method: str, embeddings: list[np.ndarray]) -> dict[str, Any] | None:
    """Embeddings of a runtime against the reference, and masks drawn from both by PyTorch's own decoder on the CPU.

    No masks with random weights: their logits are noise around zero.
    """
    import numpy as np

    from gpu_suite.package import decoder_of, embedding_errors, mask_ious

    wanted = references(options, model, method)
    if wanted is None:
        return None
    if not all(bool(np.isfinite(e).all()) for e in embeddings):
        return {"finite": False, "photos": len(wanted)}
    found: dict[str, Any] = {"finite": True, "photos": len(wanted), **embedding_errors(wanted, embeddings)}
    if not (options.random and model != "demo"):
        decode, inputs = decoder_of(load(options, model)), inputs_of(options, model)
        sides = ([{"image_embeddings": e} for e in side] for side in (wanted, embeddings))
        ious = mask_ious(*(inputs.masks(decode, side) for side in sides))
        found |= {"mask_iou_mean": float(np.mean(ious)), "mask_iou_min": min(ious), "masks": len(ious)}
    return found


def export(options: dict[str, Any], model: str, method: str) -> dict[str, Any]:
    """Trace and rewrite the encoder in FP32; nodes and MACs of every file."""
    import onnx

    from gpu_suite.package import graph_macs, rewrite, trace_encoder

    given = Options.from_dict(options)
    loaded, folder = load(given, model), folder_of(given, model, method)
    source = folder / ("plain.fp32.onnx" if method == "none" else "traced.onnx")
    target = folder / f"{forms(method)[-1]}.fp32.onnx"
    began = time.perf_counter()
    with schedule_of(given, model, method).patched(loaded.sam.image_encoder) as encoder:
        trace_encoder(encoder, loaded.geometry.image_size, source)
    traced = time.perf_counter() - began
    made = rewrite(source, target, keep_outputs=("image_embeddings",))
    found: dict[str, Any] = {"trace_seconds": round(traced, 1), "rules": {k: n for k, n in made.counts.items() if n}}
    for form in forms(method):
        path = folder / f"{form}.fp32.onnx"
        nodes = len(onnx.load(str(path), load_external_data=False).graph.node)
        found[form] = {"nodes": nodes, "macs": graph_macs(path)}
    return found


def to_fp16(options: dict[str, Any], model: str, method: str) -> dict[str, Any]:
    """Type every FP32 file of a method as FP16, calibrated on the photos."""
    from gpu_suite.package import calibrate, convert

    given = Options.from_dict(options)
    folder, found = folder_of(given, model, method), {}
    feeds = inputs_of(given, model).feeds(1)
    for form in forms(method):
        source = folder / f"{form}.fp32.onnx"
        made = convert(source, folder / f"{form}.fp16.onnx", "fp16", calibrate(source, feeds))
        kept = {"low": made.low, "fp32": made.fp32, "casts": made.casts, "bytes": made.bytes}
        found[form] = {**kept, "offenders": [o.node for o in made.offenders]}
    return found
