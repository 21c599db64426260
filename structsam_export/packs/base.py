"""What a pack is made from, and what a pack must say and do."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.errors import UsageError
from structsam_export.folder import PARTS, ExportFolder, companion, onnx_name
from structsam_export.geometry import EncoderGeometry
from structsam_export.runtime.features import EARLY

if TYPE_CHECKING:
    from structsam_export.packs.graphs import Core

MASK_SCALE = 4  # pixels of a low-resolution mask a token


@dataclass(frozen=True)
class Option:
    """An option of a pack: its values, the first of which is the default, and a sentence."""

    choices: tuple[str, ...]
    help: str


@dataclass(frozen=True)
class Source:
    """A finished export as packs see it."""

    folder: ExportFolder
    geometry: EncoderGeometry

    @classmethod
    def read(cls, path: Path) -> Source:
        """An export folder.

        Raises:
            ArtifactError: no export folder, or not ours.
            UsageError: an export of a model that draws no masks.
        """
        folder = ExportFolder.read(path)
        folder.require("decoder")
        return cls(folder, EncoderGeometry.from_dict(folder.geometry))

    @property
    def size(self) -> int:
        """S, the side of the encoder's square in pixels."""
        return self.geometry.image_size

    @property
    def mask_side(self) -> int:
        """Side of a low-resolution mask in pixels."""
        return MASK_SCALE * self.geometry.grid[0]

    @property
    def embedding(self) -> list[int]:
        """Shape of an image embedding, (1, C, h, w)."""
        return [1, self.geometry.out_channels, *self.geometry.grid]

    @property
    def model(self) -> str:
        """What `--model` was."""
        return self.folder.config.model

    @property
    def name(self) -> str:
        """What the export is called: model, method, rate, precision."""
        config = self.folder.config
        return config.folder_name(config.rate if config.rate is not None else 0.0)

    @property
    def bytes(self) -> int:
        """Bytes of both graphs with their weights."""
        files = self.folder.manifest.files
        names = [name for part in map(onnx_name, PARTS) for name in (part, companion(part))]
        return sum(int(files[name]["bytes"]) for name in names if name in files)

    def core(self, part: str) -> Core:
        """The verified graph of a part ("encoder", "decoder"), to be put inside a program's graph.

        Raises:
            ArtifactError: missing, changed, or no graph.
        """
        from structsam_export.packs.graphs import Core

        return Core.read(self.folder.onnx(part))

    @property
    def decoder_inputs(self) -> list[str]:
        """Names of what the decoder takes."""
        return [given.name for given in self.core("decoder").model.graph.input]

    def facts(self) -> dict[str, Any]:
        """Where a pack comes from, as plain values."""
        config, manifest = self.folder.config, self.folder.manifest
        digests = self.folder.digests(*map(onnx_name, PARTS))
        return {
            "model": config.model,
            "checkpoint_sha256": manifest.model["sha256"],
            "image_size": self.size,
            "method": config.method,
            "rate": config.rate,
            "precision": config.precision,
            "form": config.form,
            "passed": manifest.results.passed,
            **{f"{name}_sha256": digest for name, digest in digests.items()},
        }


@dataclass(frozen=True)
class Limits:
    """What a program can run.

    Args:
        sizes: sides of images it sends; None: any.
        why_size: the reason, as the end of a sentence about the program.
        precisions: of encoders that its runtime has kernels for.
        forms: of graphs that its runtime reads.
        why_form: the reason for forms left out.
        batches: whether it takes encoders of several images a call.
        preprocessing: what it can do to photos (`runtime.images.prepare`).
    """

    sizes: tuple[int, ...] | None = (1024,)
    why_size: str = "assume images of 1024 px and masks of 256 x 256"
    precisions: tuple[str, ...] = ("fp32", "fp16")
    forms: tuple[str, ...] = ("portable", "attention", "ort-cpu", "openvino")
    why_form: str = ""
    batches: bool = False
    preprocessing: tuple[str, ...] = ("sam",)


@dataclass(frozen=True)
class Pack(ABC):
    """A folder for one kind of program.

    A pack says what its program can run (`LIMITS`), writes its files (`write`), and has a page of its own,
    `readme/<NAME>.md.j2`, with the lines that load it.

    Args:
        options: a value for each of `OPTIONS`.
    """

    options: Mapping[str, str]

    NAME: ClassVar[str]
    # One line of what the folder holds.
    TITLE: ClassVar[str]
    # The programs that read it, as they call themselves.
    CLIENTS: ClassVar[str]
    # Who runs the files, for messages.
    RUNTIME: ClassVar[str] = "ONNX Runtime"
    LIMITS: ClassVar[Limits] = Limits()
    OPTIONS: ClassVar[Mapping[str, Option]] = {}

    def check(self, source: Source) -> None:
        """Refuse an export that the program cannot run.

        Raises:
            UsageError: with the reason and what to do.
        """
        if why := self.refusal(source):
            raise UsageError(f"{source.folder.path} cannot be packed as '{self.NAME}': {why}")

    def refusal(self, source: Source) -> str | None:
        """Why the program cannot run an export, and what to do; None if it can."""
        config, limits, who = source.folder.config, self.LIMITS, self.CLIENTS
        if source.folder.manifest.results.passed is False:
            return "it did not pass its parity gates. See its report.html, and export again."
        if config.prompt_aware:
            return (
                f"{who} encode an image once, before any prompt; this encoder takes one. Export without --prompt-aware."
            )
        if config.batch != 1 and not limits.batches:
            return f"{who} send one image a call; this encoder takes {config.batch}. Export with --batch 1."
        if source.folder.preprocessing not in limits.preprocessing:
            able, wanted = " or ".join(limits.preprocessing), source.folder.preprocessing
            return f"{who} prepare photos as for {able}; this model's are {wanted}. Use the export's own files."
        if limits.sizes is not None and source.size not in limits.sizes:
            demo = " Export --model demo-1024." if source.model == "demo" else " Export a model of that size."
            return f"{who} {limits.why_size}; this model takes {source.size} px.{demo}"
        if config.precision not in limits.precisions:
            able = " or ".join(limits.precisions)
            return f"{self.RUNTIME} as {who} use it runs no {config.precision.upper()}. Export with --precision {able}."
        if config.form not in limits.forms:
            return f"{limits.why_form} Export without --form {config.form}."
        if EARLY in source.decoder_inputs:
            return (
                f"{who} hand one tensor from encoder to decoder; SAM-HQ's decoder takes {EARLY} besides. Use the "
                "export's own files, as `Predictor` does."
            )
        return None

    @abstractmethod
    def write(self, source: Source, folder: Path) -> None:
        """Write all files but README.md and pack.json.

        Args:
            source: an export that `check` let through.
            folder: empty.

        Raises:
            ArtifactError: a graph of the export cannot be used.
        """

    def readme(self, source: Source, folder: str) -> str:
        """The pack's page, in Markdown; `folder` is what the pack's folder will be called."""
        return self.page(f"{self.NAME}.md.j2", source, folder, "readme")

    def page(self, template: str, source: Source, folder: str, place: str) -> str:
        """A filled template of `packs/<place>`."""
        from jinja2 import Environment, PackageLoader, StrictUndefined

        environment = Environment(
            loader=PackageLoader("structsam_export.packs", place),
            undefined=StrictUndefined,
            trim_blocks=True,
            keep_trailing_newline=True,
        )
        return environment.get_template(template).render(
            pack=self, source=source, folder=folder, config=source.folder.config, option=self.options
        )
