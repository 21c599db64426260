"""One frozen object says what a run does; it is what the command fills, what runs, and what the manifest keeps."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from structsam_export.errors import ArtifactError, UsageError

SCHEMA = 1
PRECISIONS = ("fp32",)
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "none")


@dataclass(frozen=True)
class ExportConfig:
    """Options of one export.

    `checkpoint` and `images` are paths as text; `rate` is the fraction of tokens removed, None for the method's
    default; `target` is a comma list of sm86, sm89, ... or "current", or "auto" (this GPU, else sm86,sm89).
    """

    model: str = "demo"
    checkpoint: str | None = None
    method: str = "structsam"
    rate: float | None = None
    variant: str | None = None
    layers: str = "all"
    precision: str = "fp32"
    backend: str = "auto"
    target: str = "auto"
    opset: int = 18
    batch: int = 1
    images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.precision not in PRECISIONS:
            raise UsageError(f"Precision '{self.precision}' is not available. Choose from: {', '.join(PRECISIONS)}.")
        if self.backend not in BACKENDS:
            raise UsageError(f"Unknown backend '{self.backend}'. Choose from: {', '.join(BACKENDS)}.")
        if self.batch < 1:
            raise UsageError(f"Batch {self.batch} is not a number of images. Pass --batch 1 or more.")
        if not 18 <= self.opset <= 23:
            raise UsageError(f"Opset {self.opset} is not supported. Pass --opset 18 to 23.")

    def folder_name(self, rate: float) -> str:
        """Default output folder: <model>-<method>-r<rate*100>-<precision>, variant and layers only if they differ."""
        parts = [self.model, self.method]
        if self.variant:
            parts.append(self.variant)
        if self.layers != "all":
            parts.append(self.layers.replace(",", "+"))
        return "-".join([*parts, f"r{rate * 100:g}", self.precision])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the schema's version."""
        return {"schema": SCHEMA, **asdict(self), "images": list(self.images)}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> ExportConfig:
        """Inverse of `to_dict`.

        Raises:
            ArtifactError: written by another version of this program.
        """
        known = {f.name for f in fields(cls)}
        values = {k: v for k, v in data.items() if k != "schema"}
        if data.get("schema") != SCHEMA or set(values) - known:
            raise ArtifactError(
                f"This configuration has schema {data.get('schema')}; this version reads schema {SCHEMA}. Export again."
            )
        return cls(**{**values, "images": tuple(values.get("images", ()))})


def read_json(path: Path) -> Any:
    """Parse a JSON file of ours.

    Raises:
        ArtifactError: missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ArtifactError(f"{path} is missing. Is {path.parent} an output folder of structsam-export?") from None
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ArtifactError(f"{path} is damaged ({error}). Export again with --force.") from None
