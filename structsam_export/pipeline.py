"""The main job: patch -> trace -> rewrite -> build -> validate, as one run or stage by stage on an export folder."""

from __future__ import annotations

import gc
import json
from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.backends import choose_backend
from structsam_export.config import ExportConfig
from structsam_export.console import console, markup, stage
from structsam_export.errors import UsageError
from structsam_export.files import check_writable, require_space
from structsam_export.folder import (
    OUTPUTS,
    PAGE,
    REFERENCE,
    REPORT,
    ExportFolder,
    new_folder,
    onnx_name,
    raw_name,
)
from structsam_export.fused import chosen as chosen_plugins
from structsam_export.job import Job, photos_for
from structsam_export.plugin_builds import NONE, PluginBuild, tell_plugins
from structsam_export.reading import content_errors
from structsam_export.recipes import say_other_weights, with_recipe

if TYPE_CHECKING:
    from structsam_export.backends.base import Backend
    from structsam_export.validate.stages import Inputs, Reference

# From here on (bytes of weights) the PyTorch model is freed after tracing.
KEEP_LIMIT = 1_000_000_000


def export(
    config: ExportConfig, output: Path | None = None, *, force: bool = False, recipe: Path | None = None
) -> tuple[dict[str, Any], Path]:
    """Run every stage.

    Args:
        config: what to export.
        recipe: a recipe file of `tune`, whose schedule takes the place of the configuration's.
        output: folder to make; default engines/<model>-<method>-r<rate*100>-<precision>.
        force: replace the folder if it is an earlier export.

    Returns:
        The report (`report.json`) and the folder. `report["passed"]` tells whether all parity gates hold.

    Raises:
        StructSAMError: what cannot be exported, or cannot be written; nothing is left behind.
    """
    from structsam_export.validate.stages import eager_reference

    chosen = choose_backend("none" if config.backend == "auto" and not config.buildable else config.backend)
    targets = chosen.targets(config.target) if chosen else ()
    config, origin = (config, None) if recipe is None else with_recipe(config, recipe)
    job = Job.prepare(config)
    target = output or job.default_folder
    photos = job.photos()
    manifest = job.manifest()
    if origin is not None:
        manifest.results = replace(manifest.results, recipe=origin)
        say_other_weights(origin, job.loaded.sha256)
    with new_folder(target, manifest, force=force) as folder:
        weights = job.weight_bytes
        require_space(folder.path, weights * (3 + len(targets)))
        reference = eager_reference(job.loaded, job.schedule, photos)
        trace_stage(job, folder)
        if freed := weights >= KEEP_LIMIT:
            job.drop_weights()
        rewrite_stage(folder)
        precision_stage(folder, reference.inputs)
        build_stage(folder, chosen, targets)
        report = validate_stage(job, folder, reference, weights_freed=freed)
    return report, target


def trace_stage(job: Job, folder: ExportFolder) -> None:
    """Export encoder and decoder as traced."""
    from structsam_export.trace import trace_decoder, trace_encoder

    sam, config = job.loaded.sam, job.config
    with stage(f"trace {' and '.join(folder.parts)} to ONNX"), folder.changing() as draft:
        partial = draft.path
        with job.schedule.patched(sam.image_encoder) as encoder:
            size, boxes, path = job.loaded.geometry.image_size, config.prompt_aware, partial / raw_name("encoder")
            trace_encoder(encoder, size, path, batch=config.batch, opset=config.opset, boxes=boxes)
        if "decoder" in folder.parts:
            trace_decoder(sam, partial / raw_name("decoder"), opset=config.opset)
        draft.add(*(raw_name(part) for part in folder.parts))


def rewrite_stage(folder: ExportFolder) -> None:
    """Rewrite both graphs; engines and reports made from earlier ones are removed once the new graphs are there.

    An encoder of a low precision is rewritten for every runtime first, typed by `precision_stage`, and only then
    written for one runtime.
    """
    with folder.changing() as draft:
        rewrite_into(folder, draft)


def rewrite_into(folder: ExportFolder, draft: ExportFolder) -> None:
    """`rewrite_stage`: reads the traced graphs of a folder, writes into its draft."""
    from structsam_export.rewrite import apply_plugins, rewrite

    config = folder.config
    sources = {part: folder.raw(part) for part in folder.parts}
    # Also the typed encoder: it was made of another reference.
    draft.forget([*draft.derived, onnx_name("encoder"), f"{onnx_name('encoder')}.data"])
    names = {part: onnx_name(part) for part in folder.parts}
    if config.precision != "fp32":
        names["encoder"] = REFERENCE
    forms = {"encoder": config.form if config.precision == "fp32" else "portable", "decoder": "portable"}
    found = {}
    with stage("rewrite graphs"):
        for part in folder.parts:
            target = draft.path / names[part]
            found[part] = rewrite(sources[part], target, keep_outputs=OUTPUTS[part], form=forms[part])
            if part == "encoder" and config.precision == "fp32" and chosen_plugins(config.plugins):
                found[part] = found[part].then(apply_plugins(target, target, chosen_plugins(config.plugins)))
            gc.collect()
    draft.add(*names.values())
    draft.record(
        rewrite={part: made.counts for part, made in found.items()},
        graph={part: {"nodes_raw": made.nodes_before, "nodes": made.nodes} for part, made in found.items()},
        rewrite_skipped={part: list(made.skipped) for part, made in found.items()},
        precision=None,
        passed=None,
        judged={},
    )


def precision_stage(folder: ExportFolder, inputs: Inputs | None = None) -> None:
    """Type the rewritten encoder as its configuration asks: `encoder.onnx`, with its FP32 reference beside it.

    The decoder stays FP32: it is 3 % of the work, and some masks hang on less than FP16 keeps.

    Args:
        folder: with the rewritten graphs.
        inputs: photos to calibrate with; None: those of the folder's configuration.
    """
    if folder.config.precision != "fp32":
        with folder.changing() as draft:
            type_into(folder, draft, inputs or inputs_of(folder))


def type_into(folder: ExportFolder, draft: ExportFolder, inputs: Inputs) -> None:
    """`precision_stage`: reads the FP32 encoder of a folder (which may be the draft itself), writes into its draft."""
    from structsam_export.graphs import load
    from structsam_export.precision import calibrate, convert, low_types
    from structsam_export.rewrite import apply_form, apply_plugins

    config, target = folder.config, draft.path / onnx_name("encoder")
    source, name, results = folder.fp32_encoder(), target.name, draft.manifest.results
    draft.forget(draft.derived)
    counts, graph, skipped = dict(results.rewrite), dict(results.graph), dict(results.rewrite_skipped)
    with stage(f"{config.precision}: calibrate, {len(inputs.photos)} photos"), content_errors(source):
        amax = calibrate(source, inputs.feeds(config.batch))
    with stage(f"encoder in {config.precision}"):
        with content_errors(source):
            made = convert(source, target, config.precision, amax)  # type: ignore[arg-type]
        formed = apply_form(target, target, config.form)
        if chosen_plugins(config.plugins):
            formed = formed.then(apply_plugins(target, target, chosen_plugins(config.plugins)))
        low = low_types(load(target))
    for node in made.offenders:
        console().print(f"[yellow]FP32 kept: {markup(f'{node.op} {node.node}: {node.why}')}[/yellow]")
    # What stays FP32 may be as large as it likes.
    largest = dict(sorted(((n, a) for n, a in amax.items() if n in low), key=lambda item: -item[1])[:10])
    before = counts["encoder"]
    counts["encoder"] = before | {rule: before.get(rule, 0) + n for rule, n in formed.counts.items()}
    graph["encoder"] = graph["encoder"] | {"nodes": formed.nodes}
    skipped["encoder"] = [*skipped["encoder"], *formed.skipped]
    draft.add(name)
    draft.record(
        passed=None,
        judged={},
        precision={**made.to_dict(), "largest": largest},
        rewrite=counts,
        graph=graph,
        rewrite_skipped=skipped,
    )


def inputs_of(folder: ExportFolder) -> Inputs:
    """The photos that a folder's configuration validates on."""
    from structsam_export.geometry import EncoderGeometry
    from structsam_export.validate.stages import Inputs

    config, model, geometry = folder.config, folder.manifest.model, EncoderGeometry.from_dict(folder.geometry)
    how: dict[str, Any] = {"prompt_aware": config.prompt_aware, "data": model.get("data")}
    return Inputs.of(photos_for(config, geometry), geometry.image_size, model["preprocessing"], **how)


def build_stage(
    folder: ExportFolder, chosen: Backend | None, targets: Sequence[str], plugins: PluginBuild = NONE
) -> None:
    """Build an encoder and a decoder for every target; engines of other targets stay.

    Args:
        folder: with the rewritten graphs.
        chosen: builds; None: nothing is built.
        targets: of the backend.
        plugins: what to do about fused operators.

    Raises:
        UsageError: the graph is written for another runtime.
        ArtifactError: the backend refuses a graph.
    """
    from structsam_export.runtime.prompts import decoder_profile

    config = folder.config
    if chosen is None:
        if config.buildable:
            why = "no backend. Run structsam-export doctor for what to install."
            console().print(f"[yellow]No engine built[/yellow]: {why}")
        return
    if not config.buildable_by(chosen.NAME):
        raise UsageError(
            f"{folder.path} is written for --form {config.form}, which {chosen.NAME} does not build. Export without "
            f"--form {config.form} to build it."
        )
    profiles = {"encoder": {}, "decoder": decoder_profile(*(folder.geometry[k] for k in ("image_size", "patch_size")))}
    if not chosen.BUILDS:
        return
    with folder.changing() as draft, plugins.loaded(chosen) as packed:
        for target, part in product(targets, folder.parts):
            fp32 = chosen.FROM_FP32 and part == "encoder"
            source = folder.fp32_encoder() if fp32 else folder.onnx(part)
            with stage(f"build {part}, {chosen.NAME} {target}"), plugins.in_graph(source, part) as fused:
                made = chosen.build(fused, draft.path, part, target, profiles[part])
            draft.add_engine(plugins.noted(made, draft.path, packed))
            if part == "encoder" and (plugins.names or chosen_plugins(config.plugins)):
                tell_plugins(made)
        draft.forget([name for name in draft.derived if name in (REPORT, PAGE)])
        draft.record(passed=None, judged={})


def validate_stage(job: Job, folder: ExportFolder, reference: Reference, *, weights_freed: bool) -> dict[str, Any]:
    """Compare all stages, write the report, and record the verdict in the manifest."""
    from structsam_export.report import build_report
    from structsam_export.report.html import render
    from structsam_export.validate.latency import latency
    from structsam_export.validate.parity import check_stages

    with folder.changing() as draft:
        found = check_stages(reference, folder)
        found = replace(found, latency=latency(found, job, folder, weights_freed=weights_freed))
        draft.executed(found.executed)
        with stage("write report"):
            report = build_report(job, folder, found)
            (draft.path / REPORT).write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
            (draft.path / PAGE).write_text(render(report, found, job.loaded.geometry), encoding="utf-8")
        draft.add(REPORT, PAGE)
        draft.record(passed=report["passed"], judged=draft.manifest.graphs())
    return report


def trace_only(config: ExportConfig, output: Path | None = None, *, force: bool = False) -> Path:
    """Stages patch and trace alone: a folder with the traced graphs and a manifest."""
    job = Job.prepare(config)
    target = output or job.default_folder
    with new_folder(target, job.manifest(), force=force) as folder:
        trace_stage(job, folder)
    return target


def rewrite_folder(path: Path) -> ExportFolder:
    """Stages rewrite and precision alone, on a folder that was traced.

    Raises:
        ArtifactError: a file is missing or was changed.
    """
    folder = ExportFolder.read(path)
    with folder.changing() as draft:
        rewrite_into(folder, draft)
        if folder.config.precision != "fp32":
            type_into(draft, draft, inputs_of(folder))
    return folder


def build_folder(
    path: Path, backend_name: str, target: str, plugins: str = "none", given: PluginBuild = NONE
) -> ExportFolder:
    """Stage build alone, on a folder that was rewritten; `plugins` as in `ExportConfig`, `given` their library.

    Raises:
        UsageError: unknown names, or a graph for another runtime.
        MissingRuntimeError: the backend is not installed, or needs a device that is not here.
        ArtifactError: a file is missing or was changed, or the backend refuses it.
    """
    chosen = choose_backend(backend_name)
    folder = ExportFolder.read(path)
    given = given.of(folder, plugins, chosen)
    build_stage(folder, chosen, chosen.targets(target) if chosen else (), given)
    return folder


def validate_folder(path: Path, images: Sequence[str] = (), checkpoint: str | None = None) -> dict[str, Any]:
    """Stage validate alone, on a folder of an earlier run; returns the new report.

    Args:
        path: the folder.
        images: photos to validate on instead of those of the export.
        checkpoint: where the weights are now; None: where they were.

    Raises:
        ArtifactError: a file is missing or was changed, or the checkpoint is not the one that was exported.
    """
    from structsam_export.validate.stages import eager_reference

    folder = ExportFolder.read(path)
    check_writable(path / REPORT, "copy the folder to where it can be written to")
    for part in folder.parts:
        folder.raw(part)
        folder.onnx(part)
    folder.fp32_encoder()
    for engine in folder.manifest.engines:
        folder.verified(engine.file)
    job = Job.of_folder(folder, checkpoint, images)
    reference = eager_reference(job.loaded, job.schedule, job.photos())
    return validate_stage(job, folder, reference, weights_freed=False)
