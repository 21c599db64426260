"""Which steps a run has, the most important first: a budget cuts the end off."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpu_suite import Options
from gpu_suite.exports import forms
from gpu_suite.fused import fused_form
from gpu_suite.kernels import ATTENTION, LAYERS

# Seconds a step should need; GPU and compiler differ, so these only keep what cannot end from being begun.
SECONDS = {
    "conditions": 10.0,
    "probe": 10.0,
    "reference": 6.0,
    "export": 20.0,
    "fp16": 10.0,
    "build": 8.0,
    "execute": 8.0,
    "eager": 6.0,
    "compiled": 60.0,
    "onnxruntime": 15.0,
    "onnxruntime-tensorrt": 60.0,
    "kernel": 20.0,
    "plugins": 5.0,
}
# By how much bigger models take longer than ViT-B.
SIZES = {"demo": 0.6, "vit_l": 3.0, "vit_h": 6.0}


@dataclass(frozen=True)
class Step:
    """One step.

    Args:
        name: what reports call it, unique.
        action: "module:function" that a worker calls with `arguments`.
        arguments: plain values.
        needs: steps that must have succeeded.
        gpu: measures on a GPU, and nothing else: a dry run leaves it out.
        seconds: what it should take.
        backend: TensorRT that its process is given to, if any.
    """

    name: str
    action: str
    arguments: dict[str, Any] = field(default_factory=dict)
    needs: tuple[str, ...] = ()
    gpu: bool = False
    seconds: float = 1.0
    backend: str | None = None


def plan(options: Options, backends: Sequence[str]) -> list[Step]:
    """All steps of a run, in order: per model what decides (FP16 engines, then FP32), then what it is compared with."""
    steps = [Step("conditions", "gpu_suite.conditions:conditions", seconds=SECONDS["conditions"])]
    given = {"options": options.to_dict()}
    for backend in backends:
        arguments = {**given, "backend": backend}
        steps.append(
            Step(f"probe {backend}", "gpu_suite.engines:probe", arguments, (), False, SECONDS["probe"], backend)
        )
    steps.append(Step("plugin library", "gpu_suite.fused:library", given))
    for model in options.models:
        steps += of_model(options, model, backends)
    steps += kernel_steps(options)
    # What is nice to know, after every model has had its turn.
    steps += onnxruntime_steps(options, "cuda", "onnxruntime", ("fp32", "fp16"))
    for model in options.models:
        steps += compiled_steps(options, model)
    steps += onnxruntime_steps(options, "tensorrt", "onnxruntime-tensorrt", ("fp32",))
    return [*steps, Step("conditions at the end", "gpu_suite.conditions:gpu_state", seconds=1.0, gpu=True)]


def kernel_steps(options: Options) -> Iterator[Step]:
    """Kernels of plugins/; a dry run has one of each kind."""
    first = 1 if options.dry_run else None
    given = {"options": options.to_dict()}
    for precision in ("float32",) if options.dry_run else ("float16", "bfloat16", "float32"):
        for case in [*ATTENTION][:first]:
            more: dict[str, Any] = {**given, "case": case, "precision": precision}
            yield Step(
                f"kernel attention {case} {precision}", "gpu_suite.kernels:attention", more, seconds=SECONDS["kernel"]
            )
        for layer in [*LAYERS][:first]:
            more = {**given, "layer": layer, "precision": precision}
            yield Step(
                f"kernel merging {layer} {precision}", "gpu_suite.kernels:merging", more, seconds=SECONDS["kernel"]
            )


def of_model(options: Options, model: str, backends: Sequence[str]) -> Iterator[Step]:
    """Exports, engines and eager references of one model."""
    for method in options.methods:
        arguments: dict[str, Any] = {"options": options.to_dict(), "model": model, "method": method}
        for kind, action, needs in (
            ("reference", "reference", ()),
            ("export", "export", ()),
            ("fp16", "to_fp16", (f"export {model} {method}",)),
        ):
            name = f"{kind} {model} {method}"
            yield Step(name, f"gpu_suite.exports:{action}", arguments, needs, seconds=seconds(kind, model))
    yield from eager_steps(options, model, ("stock",), ("fp32", "fp16"))
    for backend in backends:
        for precision in ("fp16", "fp32"):
            for method in options.methods:
                for form in forms(method):
                    yield from engine_steps(options, model, method, form, precision, backend)
                yield from fused_steps(options, model, method, precision, backend)
    yield from eager_steps(options, model, ("stock",), ("tf32",))
    yield from eager_steps(options, model, ("sdpa",), ("fp32", "fp16"))
    for method in options.methods:
        if method != "none":
            yield from eager_steps(options, model, ("patched",), ("fp32", "fp16"), method)


def seconds(kind: str, model: str) -> float:
    """What a step of a model should take."""
    return SECONDS[kind] * SIZES.get(model, 1.0)


def fused_steps(options: Options, model: str, method: str, precision: str, backend: str) -> Iterator[Step]:
    """The same engine with plugins; in FP16 alone, which they are for."""
    if precision != "fp16":
        return
    more = {"options": options.to_dict(), "model": model, "method": method, "precision": precision}
    name = f"plugins {model} {method} {precision} {backend}"
    needs = ("plugin library", f"fp16 {model} {method}")
    yield Step(name, "gpu_suite.fused:fuse", more, needs, False, seconds("plugins", model))
    yield from engine_steps(options, model, method, fused_form(method), precision, backend, name)


def engine_steps(
    options: Options, model: str, method: str, form: str, precision: str, backend: str, source: str | None = None
) -> Iterator[Step]:
    """Build one engine; run it, for TensorRT-RTX also as one CUDA graph. A dry run builds in FP16 alone.

    `source` is the step that makes the ONNX file, where that is not the one of the method's forms.
    """
    arguments: dict[str, Any] = {"options": options.to_dict(), "model": model, "method": method}
    arguments |= {"form": form, "precision": precision, "backend": backend}
    what = f"{model} {method} {form} {precision} {backend}"
    source = source or f"{'export' if precision == 'fp32' else 'fp16'} {model} {method}"
    needs, left_out = (f"probe {backend}", source), options.dry_run and precision != "fp16"
    cost = seconds("build", model)
    build = Step(f"build {what}", "gpu_suite.engines:build", arguments, needs, left_out, cost, backend)
    yield build
    for cuda_graph in (False, True) if backend == "tensorrt-rtx" else (False,):
        name = f"run {what}" + (" CUDA graph" if cuda_graph else "")
        more = {**arguments, "cuda_graph": cuda_graph}
        spent = seconds("execute", model)
        yield Step(name, "gpu_suite.engines:execute", more, (build.name,), True, spent, backend)
        # The package's own way of running engines, once for each backend: parity alone.
        if (method, form, precision) == (options.methods[-1], forms(method)[-1], "fp16"):
            name = name.replace("run ", "package_runner ", 1)
            yield Step(name, "gpu_suite.engines:package_runner", more, (build.name,), True, spent, backend)


def eager_steps(
    options: Options, model: str, kinds: Sequence[str], precisions: Sequence[str], method: str = "none"
) -> Iterator[Step]:
    """PyTorch without export."""
    for kind in kinds:
        for precision in precisions:
            arguments: dict[str, Any] = {"options": options.to_dict(), "model": model, "method": method}
            arguments |= {"kind": kind, "precision": precision}
            cost = seconds("compiled" if kind.startswith("compiled") else "eager", model)
            name = f"eager {model} {method} {kind} {precision}"
            yield Step(name, "gpu_suite.eager:eager", arguments, gpu=True, seconds=cost)


def onnxruntime_steps(options: Options, provider: str, title: str, precisions: Sequence[str]) -> Iterator[Step]:
    """Every ONNX file on one provider of ONNX Runtime; a dry run has the CPU's for FP32 on CUDA, and nothing else."""
    probe: dict[str, Any] = {"options": options.to_dict(), "provider": provider}
    only_gpu = provider != "cuda"
    yield Step(f"probe {title}", "gpu_suite.engines:onnxruntime_probe", probe, (), only_gpu, SECONDS["probe"])
    for model in options.models:
        for precision in precisions:
            for method in options.methods:
                source = f"{'export' if precision == 'fp32' else 'fp16'} {model} {method}"
                for form in forms(method):
                    more = {**probe, "model": model, "method": method, "form": form, "precision": precision}
                    name, needs = f"{title} {model} {method} {form} {precision}", (f"probe {title}", source)
                    gpu = only_gpu or precision != "fp32"
                    yield Step(name, "gpu_suite.engines:onnxruntime", more, needs, gpu, seconds(title, model))


def compiled_steps(options: Options, model: str) -> Iterator[Step]:
    """torch.compile; last, as compiling takes longest."""
    yield from eager_steps(options, model, ("compiled", "compiled-graph"), ("fp16",))
    yield from eager_steps(options, model, ("compiled",), ("fp32",))
