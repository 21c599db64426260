"""Export folders: what their files are called, what a manifest says of them, and that only what it says is read.

`manifest.json` names every finished file with its SHA-256. A file it does not name does not exist for us; a file
whose hash differs is refused. Engines are code: they are loaded through `ExportFolder.verified` only.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from structsam_export.backends import EnginePair, choose_engines
from structsam_export.backends.base import Engine
from structsam_export.config import ExportConfig, read_json
from structsam_export.errors import ArtifactError, shortened
from structsam_export.files import atomic, new_folder_at, sha256_of
from structsam_export.manifest import PARTS as PARTS
from structsam_export.manifest import check_manifest
from structsam_export.reading import check_file
from structsam_export.schema import Misfit

MANIFEST = "manifest.json"
OUTPUTS = {"encoder": ("image_embeddings",), "decoder": ("low_res_masks", "iou_predictions")}
REPORT, PAGE = "report.json", "report.html"
# Files that lie beside another one and are nothing without it: an ONNX file's weights, an OpenVINO model's.
COMPANIONS = {".onnx": "{name}.data", ".xml": "{stem}.bin"}


def raw_name(part: str) -> str:
    """The file of a part as traced."""
    return f"{part}.raw.onnx"


def onnx_name(part: str) -> str:
    """The file of a part that users run."""
    return f"{part}.onnx"


# The rewritten encoder in FP32, where `encoder.onnx` has another precision.
REFERENCE = "encoder.fp32.onnx"


def companion(name: str) -> str | None:
    """The file that holds the weights of another one, if its kind may have such a file."""
    path = Path(name)
    pattern = COMPANIONS.get(path.suffix)
    return pattern.format(name=name, stem=path.stem) if pattern else None


def bare(name: object, where: Path) -> str:
    """A file name from a manifest, which must not lead out of its folder.

    Raises:
        ArtifactError: not text, or a path.
    """
    if not isinstance(name, str) or name in ("", ".", "..") or set(name) & {"/", "\\", "\0"}:
        raise ArtifactError(
            f"{where} names a file {shortened(repr(name))}, which is no plain file name. Export again with --force."
        )
    return name


@dataclass(frozen=True)
class Results:
    """What the stages found, as the manifest keeps it.

    Args:
        rewrite: part -> rule -> times fired.
        graph: part -> "nodes_raw", "nodes".
        rewrite_skipped: part -> reasons for near matches that were left alone.
        precision: `precision.Conversion` as plain values, and "largest" activations; None for FP32.
        passed: the verdict of the last validation; None if there was none since the graphs changed.
    """

    rewrite: dict[str, dict[str, int]] = field(default_factory=dict)
    graph: dict[str, dict[str, int]] = field(default_factory=dict)
    rewrite_skipped: dict[str, list[str]] = field(default_factory=dict)
    precision: dict[str, Any] | None = None
    passed: bool | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields that hold something."""
        return {name: value for name, value in vars(self).items() if value not in ({}, None)}


@dataclass
class Manifest:
    """What an export folder holds.

    `files` maps a name to {"sha256", "bytes"}; `model` describes the checkpoint (name, sha256, geometry); `versions`
    the libraries that took part.
    """

    config: ExportConfig
    model: dict[str, Any]
    versions: dict[str, str]
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    engines: list[Engine] = field(default_factory=list)
    results: Results = field(default_factory=Results)

    @classmethod
    def read(cls, path: Path) -> Manifest:
        """Read a manifest, this version's or an earlier one's.

        Raises:
            ArtifactError: missing, or not ours.
        """
        data = read_json(path)
        try:
            check_manifest(data)
            for name in [*data["files"], *(engine["file"] for engine in data["engines"])]:
                bare(name, path)
            return cls(
                config=ExportConfig.from_dict(data["config"]),
                engines=[Engine.from_dict(engine) for engine in data["engines"]],
                results=Results(**data["results"]),
                **{k: data[k] for k in ("model", "versions", "files")},
            )
        except Misfit as error:
            raise ArtifactError(f"{path} cannot be used: {error}. Export again with --force.") from None
        except TypeError:
            raise ArtifactError(f"{path} holds results of another version. Export again with --force.") from None
        except ArtifactError as error:
            raise ArtifactError(f"{path}: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in the file."""
        return {
            **vars(self),
            "config": self.config.to_dict(),
            "engines": [engine.to_dict() for engine in self.engines],
            "results": self.results.to_dict(),
        }


@dataclass(frozen=True)
class ExportFolder:
    """An output folder and its manifest; every file of it is read, written and deleted through here."""

    path: Path
    manifest: Manifest

    @classmethod
    def read(cls, path: Path) -> ExportFolder:
        """An existing folder.

        Raises:
            ArtifactError: no manifest, or not ours.
        """
        return cls(path, Manifest.read(path / MANIFEST))

    @property
    def geometry(self) -> dict[str, Any]:
        """The sizes of the model's encoder, as plain values (`EncoderGeometry.from_dict`).

        Raises:
            ArtifactError: the manifest has none.
        """
        found: dict[str, Any] = self.manifest.model.get("geometry") or {}
        if not found:
            raise ArtifactError(f"{self.path / MANIFEST} has no geometry of the model. Export again with --force.")
        return found

    @property
    def config(self) -> ExportConfig:
        return self.manifest.config

    def write(self) -> None:
        """Write the manifest, replacing an earlier one in one step."""
        with atomic(self.path / MANIFEST) as partial:
            partial.write_text(json.dumps(self.manifest.to_dict(), indent=2) + "\n")

    def add(self, *names: str) -> None:
        """Record finished files, with what belongs to them."""
        for name in names:
            for part in filter(None, (name, companion(name))):
                path = self.path / part
                if part == name or path.exists():
                    self.manifest.files[part] = {"sha256": sha256_of(path), "bytes": path.stat().st_size}

    def add_engine(self, engine: Engine) -> None:
        """Record a finished engine in place of one of the same name."""
        self.manifest.engines[:] = [e for e in self.manifest.engines if e.file != engine.file] + [engine]
        self.add(engine.file)

    def record(self, **found: Any) -> None:
        """Put fields of `Results` into the manifest, and write it."""
        self.manifest.results = replace(self.manifest.results, **found)
        self.write()

    def executed(self, files: Iterable[str]) -> None:
        """Note that engines have run; the manifest is written by the next `record`."""
        ran = set(files)
        self.manifest.engines[:] = [replace(e, executed=e.executed or e.file in ran) for e in self.manifest.engines]

    def forget(self, names: Iterable[str]) -> None:
        """Delete files that no longer belong to the folder's graphs, and their records."""
        for name in list(names):
            self.manifest.files.pop(name, None)
            (self.path / bare(name, self.path / MANIFEST)).unlink(missing_ok=True)
        self.manifest.engines[:] = [e for e in self.manifest.engines if e.file in self.manifest.files]

    def verified(self, name: str) -> Path:
        """Path of a recorded file that still has its recorded hash, and so have its weights beside it.

        Raises:
            ArtifactError: not recorded, missing, or changed.
        """
        files = self.manifest.files
        if name not in files:
            raise ArtifactError(f"{self.path / MANIFEST} lists no {name}. Run the stage that makes it first.")
        for part in (n for n in (name, companion(name)) if n in files):
            path = self.path / part
            if not path.exists():
                raise ArtifactError(f"{path} is listed in the manifest but missing. Export again with --force.")
            check_file(path, "File", ArtifactError)
            if sha256_of(path) != files[part]["sha256"]:
                raise ArtifactError(
                    f"{path} was changed after the manifest was written (SHA-256 differs). Restore it, or export again "
                    "with --force."
                )
        return self.path / name

    def raw(self, part: str) -> Path:
        """The verified ONNX file of a part as traced."""
        return self.verified(raw_name(part))

    def onnx(self, part: str) -> Path:
        """The verified ONNX file of a part that users run."""
        return self.verified(onnx_name(part))

    @property
    def fp32_name(self) -> str:
        """Name of the rewritten encoder in FP32."""
        return REFERENCE if REFERENCE in self.manifest.files else onnx_name("encoder")

    def fp32_encoder(self) -> Path:
        """The verified rewritten encoder in FP32: what `encoder.onnx` was typed from, or itself."""
        return self.verified(self.fp32_name)

    def digests(self, *names: str) -> dict[str, str]:
        """Recorded SHA-256 of files and of their weights beside them."""
        every = [part for name in names for part in (name, companion(name)) if part in self.manifest.files]
        return {part: self.manifest.files[part]["sha256"] for part in every if part}

    def engines_here(self, backend: str | None = None) -> EnginePair | None:
        """The engines that this machine runs (of one backend, if it is named), chosen by `choose_engines`."""
        return choose_engines(self.manifest.engines, backend)

    @property
    def derived(self) -> list[str]:
        """Files that were made from the rewritten graphs: engines with their weights, and reports."""
        built = [part for e in self.manifest.engines for part in (e.file, companion(e.file)) if part]
        return [name for name in self.manifest.files if name in built or name in (REPORT, PAGE)]


@contextmanager
def new_folder(target: Path, manifest: Manifest, *, force: bool) -> Iterator[ExportFolder]:
    """A folder beside `target` that takes its place only if the body succeeds.

    Raises:
        UsageError: `target` exists and `force` is not given, or is not one of our folders.
        OutputError: the place cannot be written to.
    """
    with new_folder_at(target, MANIFEST, "an output folder", force=force) as partial:
        yield ExportFolder(partial, manifest)


def is_export(path: Path) -> bool:
    """Whether a folder has a manifest."""
    return (path / MANIFEST).is_file()
