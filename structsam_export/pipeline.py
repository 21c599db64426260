"""The main job: patch -> trace -> rewrite -> build -> validate, as one run or stage by stage on an output folder."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export import __version__
from structsam_export.artifact import Manifest, atomic, require_space, staged_files, staged_folder
from structsam_export.config import ExportConfig
from structsam_export.console import console, stage
from structsam_export.errors import ArtifactError, UsageError
from structsam_export.schedule import Schedule, resolve

if TYPE_CHECKING:
    from structsam_export.geometry import EncoderGeometry
    from structsam_export.models import LoadedModel
    from structsam_export.validate.photos import Photo
    from structsam_export.validate.stages import Validation

ENCODER_RAW, DECODER_RAW = "encoder.raw.onnx", "decoder.raw.onnx"
ENCODER, DECODER = "encoder.onnx", "decoder.onnx"
# The rewritten encoder in FP32, where `encoder.onnx` has another precision.
REFERENCE = "encoder.fp32.onnx"
OUTPUTS = {"encoder": ("image_embeddings",), "decoder": ("low_res_masks", "iou_predictions")}
# Encoder MACs x photos that validation may cost by default; bounds the time on big models (all six bundled photos
# for the demo model, four for ViT-B, one for ViT-L and ViT-H). --image overrides it.
VALIDATION_MACS = 2_000_000_000_000


@dataclass
class Job:
    """One export: what was asked for, resolved against the model."""

    config: ExportConfig
    loaded: LoadedModel
    schedule: Schedule

    @classmethod
    def prepare(cls, config: ExportConfig) -> Job:
        """Check the request and load the model; everything that can be refused is refused here."""
        from structsam_export.models import load_model

        check_names(config)
        with stage(f"load {config.model}"):
            loaded = load_model(config.model, Path(config.checkpoint) if config.checkpoint else None)
        schedule = resolve(config, loaded.geometry)
        # Text that names layers stays as it is: without them it would mean other blocks.
        by_layers = isinstance(config.rate, str) and ":" in config.rate
        rate = config.rate if by_layers else schedule.rate
        precision = schedule.precision(config.precision, config.form)
        if config.precision == "auto" and config.form != "ort-cpu" and schedule.fp16_changes_decisions:
            console().print(
                f"[yellow]FP32[/yellow]: decisions of {config.method} {schedule.method.variant} do not survive FP16; "
                "pass --precision fp16 for all the same."
            )
        return cls(replace(config, rate=rate, precision=precision), loaded, schedule)

    @classmethod
    def of_folder(
        cls, folder: Path, manifest: Manifest, checkpoint: str | None = None, images: Sequence[str] = ()
    ) -> Job:
        """What an output folder was made from.

        Args:
            folder, manifest: the folder, and its manifest.
            checkpoint: where the weights are now; None: where they were.
            images: photos to validate on instead of those of the export.

        Raises:
            ArtifactError: the checkpoint is not the one that was exported.
        """
        config = manifest.config
        where, photos = checkpoint or config.checkpoint, tuple(images) or config.images
        job = cls.prepare(replace(config, checkpoint=where, images=photos))
        if job.loaded.sha256 != manifest.model["sha256"]:
            raise ArtifactError(
                f"{job.loaded.checkpoint} is not the checkpoint {folder} was exported from "
                f"(SHA-256 {manifest.model['sha256'][:12]}...). Pass that one with --checkpoint."
            )
        return job

    @property
    def name(self) -> str:
        """<model>-<method>-...: what folders of its results are called."""
        return self.config.folder_name(self.config.rate if self.config.rate is not None else 0.0)

    @property
    def default_folder(self) -> Path:
        """engines/<model>-<method>-..."""
        return Path("engines") / self.name

    def photos(self) -> list[Photo]:
        """The photos to validate on: the user's, or as many bundled ones as the model's size allows."""
        return photos_for(self.config, self.loaded.geometry)

    def manifest(self) -> Manifest:
        """A manifest with no files yet."""
        loaded = self.loaded
        model = {
            "checkpoint": loaded.checkpoint.name,
            "sha256": loaded.sha256,
            "preprocessing": loaded.spec.preprocessing,
            "geometry": loaded.geometry.to_dict(),
        }
        return Manifest(self.config, model, versions())


def photos_for(config: ExportConfig, geometry: EncoderGeometry) -> list[Photo]:
    """The photos of a configuration: the user's, or as many bundled ones as the model's size allows."""
    from structsam_export.macs import paper_macs
    from structsam_export.validate.photos import bundled_photos, one_prompt_each, user_photos

    limit = max(1, VALIDATION_MACS // paper_macs(geometry))
    photos = user_photos(config.images) if config.images else bundled_photos(limit)
    return one_prompt_each(photos, limit) if config.prompt_aware else photos


def export(config: ExportConfig, output: Path | None = None, *, force: bool = False) -> tuple[dict[str, Any], Path]:
    """Run every stage.

    Args:
        config: what to export.
        output: folder to make; default engines/<model>-<method>-r<rate*100>-<precision>.
        force: replace the folder if it is an earlier export.

    Returns:
        The report (`report.json`) and the folder. `report["passed"]` tells whether all parity gates hold.
    """
    from structsam_export.build import choose_backend, resolve_targets
    from structsam_export.validate.stages import eager_reference

    backend = None if config.form == "ort-cpu" else choose_backend(config.backend)
    targets = resolve_targets(config.target, backend) if backend else ()
    job = Job.prepare(config)
    target = output or job.default_folder
    photos = job.photos()
    with staged_folder(target, force=force) as folder:
        weights = sum(p.numel() * 4 for p in job.loaded.sam.parameters())
        require_space(folder, weights * (3 + len(targets)))
        manifest = job.manifest()
        found = eager_reference(job.loaded, job.schedule, photos)
        trace_stage(job, folder, manifest)
        keep = job.loaded if weights < 1_000_000_000 else None
        if keep is None:
            drop_weights(job)
        rewrite_stage(folder, manifest)
        precision_stage(folder, manifest)
        build_stage(folder, manifest, backend, targets)
        report = validate_stage(job, folder, manifest, found, keep)
    return report, target


def check_names(config: ExportConfig) -> None:
    """Refuse what needs no model to be refused: unknown methods, variants and parameters, rates out of range."""
    from structsam_export.schedule import Request

    Request.of(config)


def drop_weights(job: Job) -> None:
    """Free the PyTorch model of a finished trace; ONNX Runtime and the builder need the memory."""
    # Buffers too: one small tensor left keeps the whole mapped checkpoint in memory.
    for tensor in (*job.loaded.sam.parameters(), *job.loaded.sam.buffers()):
        tensor.data = tensor.data.new_empty(0)
    gc.collect()


def trace_stage(job: Job, folder: Path, manifest: Manifest) -> None:
    """Export encoder and decoder as traced."""
    from structsam_export.artifact import disk_errors
    from structsam_export.trace import trace_decoder, trace_encoder

    sam, config = job.loaded.sam, job.config
    with stage("trace encoder and decoder to ONNX"), staged_files(folder) as partial, disk_errors(folder):
        with job.schedule.patched(sam.image_encoder) as encoder:
            size, boxes = job.loaded.geometry.image_size, config.prompt_aware
            trace_encoder(encoder, size, partial / ENCODER_RAW, batch=config.batch, opset=config.opset, boxes=boxes)
        trace_decoder(sam, partial / DECODER_RAW, opset=config.opset)
    for name in (ENCODER_RAW, DECODER_RAW):
        manifest.add_onnx(folder, name)
    manifest.write(folder)


def rewrite_stage(folder: Path, manifest: Manifest) -> None:
    """Rewrite both graphs; engines and reports made from earlier ones are removed."""
    import onnx

    from structsam_export.rewrite import rewrite

    forget(folder, manifest, [name for name in manifest.files if name.endswith((".engine", ".json", ".html"))])
    encoder = ENCODER if manifest.config.precision == "fp32" else REFERENCE
    forms = {"encoder": manifest.config.form, "decoder": "portable"}
    with stage("rewrite graphs"), staged_files(folder) as partial:
        for raw, name in ((ENCODER_RAW, encoder), (DECODER_RAW, DECODER)):
            source, part = manifest.verified(folder, raw), name.split(".")[0]
            skipped: list[str] = []
            counts = rewrite(source, partial / name, keep_outputs=OUTPUTS[part], skipped=skipped, form=forms[part])
            manifest.results.setdefault("rewrite", {})[part] = counts
            nodes = [len(onnx.load(str(p), load_external_data=False).graph.node) for p in (source, partial / name)]
            manifest.results.setdefault("graph", {})[part] = {"nodes_raw": nodes[0], "nodes": nodes[1]}
            manifest.results.setdefault("rewrite_skipped", {})[part] = skipped
            gc.collect()
    for name in (encoder, DECODER):
        manifest.add_onnx(folder, name)
    manifest.write(folder)


def precision_stage(folder: Path, manifest: Manifest) -> None:
    """Type the rewritten encoder as its configuration asks: `encoder.onnx`, with its FP32 reference beside it.

    The decoder stays FP32: it is 3 % of the work, and some masks hang on less than FP16 keeps.
    """
    config = manifest.config
    if config.precision == "fp32":
        return
    import onnx

    from structsam_export.geometry import EncoderGeometry
    from structsam_export.precision import convert, scan
    from structsam_export.precision.emulate import low_types
    from structsam_export.runtime.images import prepare
    from structsam_export.validate.stages import feeds_of

    geometry = EncoderGeometry.from_dict(manifest.model["geometry"])
    photos = photos_for(config, geometry)
    prepared = [prepare(p.image, geometry.image_size, manifest.model["preprocessing"]) for p in photos]
    source = manifest.verified(folder, REFERENCE)
    with stage(f"{config.precision}: largest activations, {len(photos)} photos"):
        peaks = scan(source, feeds_of(photos, prepared, config.batch, config.prompt_aware))
    with stage(f"encoder in {config.precision}"), staged_files(folder) as partial:
        made = convert(source, partial / ENCODER, config.precision, peaks)  # type: ignore[arg-type]
        low = low_types(onnx.load(str(partial / ENCODER), load_external_data=False))
    for node in made.offenders:
        console().print(f"[yellow]FP32 kept[/yellow]: {node.op} {node.node}: {node.why}", markup=True)
    # What stays FP32 may be as large as it likes.
    largest = dict(sorted(((n, p) for n, p in peaks.items() if n in low), key=lambda item: -item[1])[:10])
    manifest.results["precision"] = {**made.to_dict(), "largest": largest}
    manifest.add_onnx(folder, ENCODER)
    manifest.write(folder)


def build_stage(folder: Path, manifest: Manifest, backend: str | None, targets: Sequence[str]) -> None:
    """Build an encoder and a decoder engine for every target; engines of other targets stay."""
    from structsam_export.build import build_engine, decoder_profile

    if manifest.config.form == "ort-cpu":
        if backend is not None:
            raise UsageError(
                f"{folder} is written for ONNX Runtime on a CPU. Export without --form ort-cpu to build it."
            )
        return
    if backend is None:
        console().print(
            "[yellow]No engine built[/yellow]: no backend. Run structsam-export doctor for what to install."
        )
        return
    geometry = manifest.model["geometry"]
    profile = decoder_profile(geometry["image_size"], geometry["patch_size"])
    for target in targets:
        for name, shapes in ((ENCODER, {}), (DECODER, profile)):
            part = name.split(".")[0]
            onnx = manifest.verified(folder, name)
            with stage(f"build {part} engine, {backend} {target}"):
                engine = build_engine(onnx, folder, part, backend, target, shapes)
            manifest.engines = [e for e in manifest.engines if e["file"] != engine.file] + [engine.to_dict()]
            manifest.add(folder, engine.file)
            manifest.write(folder)


def validate_stage(
    job: Job, folder: Path, manifest: Manifest, found: Validation, loaded: LoadedModel | None
) -> dict[str, Any]:
    """Compare all stages, write the report, and record the verdict in the manifest."""
    import json

    from structsam_export.report import build_report
    from structsam_export.report.html import render
    from structsam_export.validate.latency import measure_latency
    from structsam_export.validate.parity import check_engines, check_onnx

    geometry = job.loaded.geometry
    check_onnx(found, folder, manifest, geometry.image_size)
    check_engines(found, folder, manifest, geometry.image_size)
    measure_latency(found, loaded, job.schedule, folder, job.config.batch)
    with stage("write report"):
        report = build_report(manifest, geometry, job.schedule, found, folder)
        with atomic(folder / "report.json") as partial:
            partial.write_text(json.dumps(report, indent=2) + "\n")
        with atomic(folder / "report.html") as partial:
            partial.write_text(render(report, found, geometry))
    manifest.add(folder, "report.json", "report.html")
    manifest.results["passed"] = report["passed"]
    manifest.write(folder)
    return report


def trace_only(config: ExportConfig, output: Path | None = None, *, force: bool = False) -> Path:
    """Stages patch and trace alone: a folder with the traced graphs and a manifest."""
    job = Job.prepare(config)
    target = output or job.default_folder
    with staged_folder(target, force=force) as folder:
        trace_stage(job, folder, job.manifest())
    return target


def validate_folder(folder: Path, images: Sequence[str] = (), checkpoint: str | None = None) -> dict[str, Any]:
    """Stage validate alone, on a folder of an earlier run; returns the new report. Arguments as for `Job.of_folder`.

    Raises:
        ArtifactError: a file is missing or was changed, or the checkpoint is not the one that was exported.
    """
    from structsam_export.validate.stages import eager_reference

    manifest = Manifest.read(folder)
    reference = () if manifest.config.precision == "fp32" else (REFERENCE,)
    for name in (ENCODER_RAW, DECODER_RAW, *reference, ENCODER, DECODER, *(e["file"] for e in manifest.engines)):
        manifest.verified(folder, name)
    job = Job.of_folder(folder, manifest, checkpoint, images)
    found = eager_reference(job.loaded, job.schedule, job.photos())
    return validate_stage(job, folder, manifest, found, job.loaded)


def forget(folder: Path, manifest: Manifest, names: Sequence[str]) -> None:
    """Delete files that no longer belong to the folder's graphs."""
    for name in names:
        manifest.files.pop(name)
        (folder / name).unlink(missing_ok=True)
    manifest.engines = [e for e in manifest.engines if e["file"] in manifest.files]


def versions() -> dict[str, str]:
    """Versions of what takes part in an export."""
    packages = ("torch", "segment-anything", "onnx", "onnxscript", "onnxruntime", "onnx-graphsurgeon", "polygraphy")
    optional = ("tensorrt", "tensorrt-rtx-cu13", "tensorrt-rtx-cu12")
    found = {"structsam-export": __version__}
    for name in (*packages, *optional):
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found
