"""Export folders: what their files are called, what a manifest says of them, and that only what it says is read.

`manifest.json` names every finished file with its SHA-256. A file it does not name does not exist for us; a file
whose hash differs is refused. Engines are code: they are loaded through `ExportFolder.verified` only.
"""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from structsam_export import drafts
from structsam_export.backends import EnginePair, choose_engines, plugin_library
from structsam_export.backends.base import Engine
from structsam_export.config import ExportConfig
from structsam_export.drafts import MANIFEST
from structsam_export.errors import ArtifactError, UsageError, shortened
from structsam_export.files import atomic, disk_errors, sha256_of
from structsam_export.graphs import locations_in
from structsam_export.manifest import PAGE as PAGE
from structsam_export.manifest import PARTS as PARTS
from structsam_export.manifest import REPORT as REPORT
from structsam_export.manifest import Manifest as Manifest
from structsam_export.manifest import Results as Results
from structsam_export.manifest import bare
from structsam_export.reading import check_file

# Of an encoder, those that it has.
OUTPUTS = {
    "encoder": ("image_embeddings", "interm_embeddings", "logits"),
    "decoder": ("low_res_masks", "iou_predictions"),
}
# Files that lie beside another one and are nothing without it: an ONNX file's weights, an OpenVINO model's, the library
# of an engine's plugins.
COMPANIONS = {".onnx": "{name}.data", ".xml": "{stem}.bin", ".engine": plugin_library.BESIDE}


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
        drafts.settled(path)
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
    def parts(self) -> tuple[str, ...]:
        """The parts that the model has: "encoder", and "decoder" where it draws masks."""
        return tuple(self.manifest.model.get("parts", PARTS))

    @property
    def preprocessing(self) -> str:
        """How photos are prepared (`runtime.images.prepare`)."""
        return str(self.manifest.model.get("preprocessing", "sam"))

    def require(self, part: str) -> None:
        """Refuse what needs a part that the model has not: whatever draws or judges masks.

        Raises:
            UsageError: it has not.
        """
        if part not in self.parts:
            raise UsageError(
                f"{self.path} is an export of {shortened(self.config.model)}, which gives features and logits but "
                "draws no masks: it has no decoder. predict, serve, pack, evaluate and whatever else needs masks take "
                "exports of a SAM; encoder.onnx can be run as it is (docs/timm.md)."
            )

    @property
    def config(self) -> ExportConfig:
        return self.manifest.config

    def write(self) -> None:
        """Write the manifest, replacing an earlier one in one step."""
        text = json.dumps(self.manifest.to_dict(), indent=2) + "\n"
        with atomic(self.path / MANIFEST) as partial:
            partial.write_text(text)
        self.manifest.stamp = hashlib.sha256(text.encode()).hexdigest()

    @contextmanager
    def changing(self) -> Iterator[ExportFolder]:
        """A draft: an export folder inside this one, in which a stage writes new files and a new manifest.

        Its manifest begins as a copy of this one's. If the body succeeds, its files move up, what it no longer lists
        is deleted, and its manifest takes the place of the old one; otherwise nothing has changed.

        Raises:
            UsageError: another run is working on this folder, or has changed it.
            OutputError: it cannot be written to.
        """
        with (
            disk_errors(self.path),
            drafts.draft(self.path, ".partial-", lambda: drafts.settle_inside(self.path)) as partial,
        ):
            there = self.path / MANIFEST
            if self.manifest.stamp and (not there.is_file() or sha256_of(there) != self.manifest.stamp):
                raise UsageError(f"{self.path} was changed by another run meanwhile. Run the command again.")
            made = ExportFolder(partial, replace(copy.deepcopy(self.manifest), stamp=""))
            yield made
            made.manifest.drop_stale_verdict()
            made.write()
            drafts.commit(self.path, partial, set(self.manifest.files) - set(made.manifest.files))
            vars(self.manifest).update(vars(made.manifest))

    def add(self, *names: str) -> None:
        """Record finished files, with what belongs to them."""
        for name in names:
            for part in filter(None, (name, companion(name))):
                path = self.path / part
                self.manifest.files.pop(part, None)
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
        """Path of a recorded file that still has its recorded hash, and so has every file that it reads weights from.

        Raises:
            ArtifactError: not recorded, missing, or changed.
        """
        files = self.manifest.files
        self.check_hash(name)
        beside = {companion(name)} & set(files)
        if name.endswith(".onnx"):
            beside |= locations_in(self.path / name, files[name]["sha256"])
        elif (other := companion(name)) and (self.path / other).exists():
            beside.add(other)
        for part in filter(None, beside):
            self.check_hash(bare(part, self.path / name))
        return self.path / name

    def check_hash(self, name: str) -> None:
        """Compare a file with its record; see `verified`."""
        files, path = self.manifest.files, self.path / name
        if name not in files:
            raise ArtifactError(f"{self.path / MANIFEST} lists no {name}. Run the stage that makes it first.")
        if not path.exists():
            raise ArtifactError(f"{path} is listed in the manifest but missing. Export again with --force.")
        check_file(path, "File", ArtifactError)
        if sha256_of(path) != files[name]["sha256"]:
            raise ArtifactError(
                f"{path} was changed after the manifest was written (SHA-256 differs). Restore it, or export again "
                "with --force."
            )

    def raw(self, part: str) -> Path:
        """The verified ONNX file of a part as traced."""
        self.require(part)
        return self.verified(raw_name(part))

    def onnx(self, part: str) -> Path:
        """The verified ONNX file of a part that users run."""
        self.require(part)
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
        return choose_engines(self.manifest.engines, backend, alone="decoder" not in self.parts)

    @property
    def derived(self) -> list[str]:
        """Files that were made from the rewritten graphs: engines with their weights, and reports."""
        built = [part for e in self.manifest.engines for part in (e.file, companion(e.file)) if part]
        return [name for name in self.manifest.files if name in built or name in (REPORT, PAGE)]


@contextmanager
def new_folder(target: Path, manifest: Manifest, *, force: bool) -> Iterator[ExportFolder]:
    """A folder that takes the place of `target` only if the body succeeds; of a link, the place it leads to.

    Raises:
        UsageError: `target` exists and `force` is not given, or is not one of our folders; or another run makes it.
        OutputError: the place cannot be written to.
    """
    with drafts.new_folder_at(target, MANIFEST, "an output folder", force=force, flat=True) as partial:
        yield ExportFolder(partial, manifest)


def is_export(path: Path) -> bool:
    """Whether a folder has a manifest."""
    return (path / MANIFEST).is_file()
