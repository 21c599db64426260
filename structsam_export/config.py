"""One frozen object says what a run does; it is what the command fills, what runs, and what the manifest keeps."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from structsam_export.errors import ArtifactError, UsageError

SCHEMA = 1
PRECISIONS = ("auto", "fp16", "fp32", "bf16")
BACKENDS = ("auto", "tensorrt", "tensorrt-rtx", "none")
# What the encoder's graph is written for; `rewrite.FORMS` holds the rules of each.
FORMS = ("portable", "attention", "ort-cpu", "openvino")


@dataclass(frozen=True)
class ExportConfig:
    """Options of one export.

    `checkpoint` and `images` are paths as text; `rate` is the fraction of tokens removed, as a number or by layers
    ("0.3:0-5,0.6:6-11"), None for the method's default; `layers` None for the method's own (all, but for cubist from
    a quarter of the depth on); `params` are the method's own parameters as (name, value) pairs; `precision` "auto"
    becomes fp16, or fp32 where that would not do; `target` is a comma list of sm86, sm89, ... or "current", or "auto"
    (this GPU, else sm86,sm89); `form` is what the graph is written for: "portable", "attention" (ONNX's operator,
    opset 23), "ort-cpu" (ONNX Runtime on a CPU, FP32) or "openvino" (ONNX's operators in the shapes OpenVINO likes).
    """

    model: str = "demo"
    checkpoint: str | None = None
    method: str = "structsam"
    rate: float | str | None = None
    variant: str | None = None
    layers: str | None = None
    compat: str | None = None
    params: tuple[tuple[str, str], ...] = ()
    prompt_aware: bool = False
    mlp: str = "none"
    mlp_density: float | None = None
    precision: str = "auto"
    backend: str = "auto"
    target: str = "auto"
    opset: int = 18
    form: str = "portable"
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
        self._check_form()

    def _check_form(self) -> None:
        if self.form not in FORMS:
            raise UsageError(f"Unknown form '{self.form}'. Choose from: {', '.join(FORMS)}.")
        if self.form == "attention" and self.opset < 23:
            raise UsageError("ONNX has an Attention operator from opset 23 on. Pass --opset 23 with --form attention.")
        if self.form == "attention" and self.precision == "fp32" and self.backend != "none":
            raise UsageError(
                "TensorRT has kernels for Attention in FP16 and BF16 only. Pass --precision fp16 or --backend none."
            )
        if self.form == "ort-cpu" and self.backend not in ("auto", "none"):
            raise UsageError(
                f"--form ort-cpu uses operators of ONNX Runtime, which {self.backend} has not. Pass another --form."
            )
        if self.form == "ort-cpu" and self.precision not in ("auto", "fp32"):
            raise UsageError(f"--form ort-cpu computes in FP32. Pass --precision fp32, not {self.precision}.")

    def folder_name(self, rate: float | str) -> str:
        """Default output folder: <model>-<method>-r<rate*100>-<precision>; other options only where they are given."""
        parts = [self.model, self.method]
        if self.variant:
            parts.append(self.variant)
        parts += [option for option in (self.compat, *(f"{k}{v}" for k, v in self.params)) if option]
        if self.prompt_aware:
            parts.append("prompt")
        if self.layers is not None:
            parts.append(self.layers.replace(",", "+"))
        if self.mlp != "none":
            parts.append(f"mlp_{self.mlp}" + (f"{self.mlp_density * 100:g}" if self.mlp_density is not None else ""))
        shown = f"{rate * 100:g}" if isinstance(rate, float) else rate.replace(",", "+").replace(":", "@")
        form = () if self.form == "portable" else (self.form,)
        return "-".join([*parts, f"r{shown}", self.precision, *form])

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the schema's version."""
        params = [list(pair) for pair in self.params]
        return {"schema": SCHEMA, **asdict(self), "images": list(self.images), "params": params}

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
        params = tuple((key, value) for key, value in values.get("params", ()))
        return cls(**{**values, "images": tuple(values.get("images", ())), "params": params})


def read_json(path: Path) -> Any:
    """Parse a JSON file of ours.

    Raises:
        ArtifactError: missing or not JSON.
    """
    try:
        return json.loads(path.read_text())
    except (FileNotFoundError, NotADirectoryError):  # the latter where a file was given for a folder
        raise ArtifactError(f"{path} is missing. Is {path.parent} an output folder of structsam-export?") from None
    except (json.JSONDecodeError, UnicodeDecodeError, IsADirectoryError) as error:
        raise ArtifactError(f"{path} is damaged ({error}). Export again with --force.") from None
