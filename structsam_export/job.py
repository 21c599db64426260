"""One export's request, resolved once: configuration, model and schedule."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.config import ExportConfig
from structsam_export.console import console, note, stage
from structsam_export.environment import versions
from structsam_export.errors import ArtifactError, UsageError
from structsam_export.folder import ExportFolder, Manifest
from structsam_export.hosts import check_method, encoder_of, host_of
from structsam_export.models.architecture import Architecture
from structsam_export.schedule import Request, Schedule

if TYPE_CHECKING:
    from structsam_export.geometry import EncoderGeometry
    from structsam_export.models import LoadedModel
    from structsam_export.runtime.photos import Photo

# Encoder MACs x photos that validation may cost by default; bounds the time on big models (all bundled photos for the
# demo model, four for ViT-B, one for ViT-L and ViT-H). --image overrides it.
VALIDATION_MACS = 2_000_000_000_000


@dataclass(frozen=True)
class Job:
    """One export: what was asked for, resolved against the model."""

    config: ExportConfig
    loaded: LoadedModel
    schedule: Schedule

    @classmethod
    def prepare(cls, config: ExportConfig, architecture: Architecture | None = None) -> Job:
        """Check the request and load the model; everything that can be refused is refused here.

        Args:
            config: the request.
            architecture: of a model that is read from its checkpoint, as an earlier run has read it.

        Raises:
            UsageError: unknown names, rates out of range, or options that do not go together.
            CheckpointError: the weights cannot be used.
        """
        request = Request.of(config)
        return cls.of_model(request, loaded_for(config, architecture))

    @classmethod
    def of_model(cls, request: Request, loaded: LoadedModel) -> Job:
        """A request for a model that is loaded already.

        Raises:
            UsageError: the model's blocks do not allow it.
        """
        config = request.config
        if not request.dense:
            check_method(loaded.sam.image_encoder, config.method)
        if not loaded.draws_masks:
            refuse_prompts(config)
        schedule = request.resolve(loaded.geometry)
        # Text that names layers stays as it is: without them it would mean other blocks.
        by_layers = isinstance(config.rate, str) and ":" in config.rate
        rate = config.rate if by_layers else schedule.rate
        # OpenVINO types the graph itself.
        asked = "fp32" if config.precision == "auto" and config.backend == "openvino" else config.precision
        precision = schedule.precision(asked, config.form)
        free = asked == "auto" and config.form != "ort-cpu"  # whether FP16 would have been possible
        if free and precision == "fp32" and schedule.fp16_changes_decisions:
            console().print(
                f"[yellow]FP32[/yellow]: decisions of {config.method} {schedule.method.variant} do not survive FP16; "
                "pass --precision fp16 for all the same."
            )
        return cls(replace(config, rate=rate, precision=precision), loaded, schedule)

    @classmethod
    def of_folder(cls, folder: ExportFolder, checkpoint: str | None = None, images: Sequence[str] = ()) -> Job:
        """What an export folder was made from.

        Args:
            folder: the folder.
            checkpoint: where the weights are now; None: where they were.
            images: photos to validate on instead of those of the export.

        Raises:
            ArtifactError: the checkpoint is not the one that was exported.
        """
        config = folder.config
        where, photos = checkpoint or config.checkpoint, tuple(images) or config.images
        try:
            known = folder.manifest.model.get("architecture")
            architecture = Architecture.from_dict(known) if known else None
            job = cls.prepare(replace(config, checkpoint=where, images=photos), architecture)
        except UsageError as error:  # names and rates of the manifest, not of the command line
            raise ArtifactError(f"The configuration of {folder.path} cannot be used: {error}") from error
        exported = str(folder.manifest.model.get("sha256"))
        if job.loaded.sha256 != exported:
            raise ArtifactError(
                f"{job.loaded.checkpoint} is not the checkpoint {folder.path} was exported from "
                f"(SHA-256 {exported[:12]}...). Pass that one with --checkpoint."
            )
        return job

    @property
    def name(self) -> str:
        """<model>-<method>-...: what folders of its results are called."""
        return self.config.folder_name(self.config.rate if self.config.rate is not None else 0.0)

    @property
    def label(self) -> str:
        """A short name for the rows of tables: method, options and rate, and a precision other than FP32."""
        return self.name.removeprefix(f"{self.config.model_name}-").removesuffix("-fp32")

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
        model: dict[str, Any] = {
            "checkpoint": loaded.checkpoint.name or loaded.checkpoint.resolve().name,
            "source": loaded.source,
            "sha256": loaded.sha256,
            "preprocessing": loaded.spec.preprocessing,
            "geometry": loaded.geometry.to_dict(),
        }
        if loaded.data is not None:
            model["data"] = loaded.data.to_dict()
        if not loaded.draws_masks:
            model["parts"] = ["encoder"]
        if loaded.architecture is not None:
            model["architecture"] = loaded.architecture.to_dict()
        if (limits := host_of(encoder_of(loaded.sam)).PROMPTS) is not None:
            model["prompts"] = limits.to_dict()
        return Manifest(self.config.anywhere(), model, versions())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the model's weights in FP32."""
        return sum(p.numel() * 4 for p in self.loaded.sam.parameters())

    def drop_weights(self) -> None:
        """Free the PyTorch model of a finished trace; ONNX Runtime and the builder need the memory."""
        # Buffers too: one small tensor left keeps the whole mapped checkpoint in memory.
        for tensor in (*self.loaded.sam.parameters(), *self.loaded.sam.buffers()):
            tensor.data = tensor.data.new_empty(0)
        gc.collect()


def require_masks(loaded: LoadedModel) -> LoadedModel:
    """A model for what draws or judges masks.

    Raises:
        UsageError: it draws none.
    """
    if not loaded.draws_masks:
        raise UsageError(
            f"{loaded.spec.name} gives features and logits but draws no masks: there is nothing to compare with "
            "true ones. evaluate, sweep and tune take a SAM; validate judges an export of this model."
        )
    return loaded


def refuse_prompts(config: ExportConfig) -> None:
    """Refuse what means nothing for a model that draws no masks, or nothing in blocks without windows.

    Raises:
        UsageError: with the first of them.
    """
    if config.prompt_aware:
        raise UsageError(f"{config.model} takes no prompts. Leave --prompt-aware away.")
    if "residual-consistency" in config.mlp:
        raise UsageError(
            f"--mlp residual-consistency thins out the MLPs of windowed blocks, and {config.model} has none. Pass "
            "--mlp merge or none."
        )


def loaded_for(config: ExportConfig, architecture: Architecture | None = None) -> LoadedModel:
    """The model of a configuration; says on stderr what was read from a checkpoint, and what was assumed.

    Raises:
        UsageError: unknown name.
        CheckpointError: the weights cannot be used.
    """
    from structsam_export.models import load_model

    preprocessing = None if config.preprocessing == "auto" else config.preprocessing
    with stage(f"load {config.model_name}"):
        checkpoint = Path(config.checkpoint) if config.checkpoint else None
        loaded = load_model(config.model, checkpoint, preprocessing=preprocessing, architecture=architecture)
    if config.model == "auto" and architecture is None:
        note(f"  read from the weights: {loaded.spec.title}")
        if preprocessing is None and loaded.spec.preprocessing == "litemedsam":
            note("  assumed: LiteMedSAM's preprocessing, as its first convolutions have no stride (--preprocessing)")
        elif preprocessing is None and loaded.spec.preprocessing == "sam":
            medsam = "medsam" in str(config.checkpoint).lower()
            hint = "Its name says MedSAM: then pass" if medsam else "MedSAM's weights need"
            note(f"  assumed: SAM's preprocessing. {hint} --preprocessing medsam, which weights do not say.")
    return loaded


def photos_for(config: ExportConfig, geometry: EncoderGeometry) -> list[Photo]:
    """The photos of a configuration: the user's, or as many bundled ones as the model's size allows."""
    from structsam_export.macs import paper_macs
    from structsam_export.runtime.photos import bundled_photos, one_prompt_each, user_photos

    limit = max(1, VALIDATION_MACS // paper_macs(geometry))
    photos = user_photos(config.images) if config.images else bundled_photos(limit)
    return one_prompt_each(photos, limit) if config.prompt_aware else photos
