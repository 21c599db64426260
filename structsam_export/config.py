"""One frozen object says what a run does; it is what the command fills, what runs, and what the manifest keeps."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from structsam_export.backends import BACKENDS
from structsam_export.errors import ArtifactError, UsageError, shortened, unknown_name
from structsam_export.fused import chosen
from structsam_export.paths import checkpoint_name
from structsam_export.reading import read_bytes
from structsam_export.rewrite import FORMS
from structsam_export.schema import Misfit, check

SCHEMA = 1
LARGEST_BATCH = 1024
LONGEST_NAME = 150  # bytes of a default folder's name, which gets endings for temporary files
PRECISIONS = ("auto", "fp16", "fp32", "bf16")
PREPROCESSINGS = ("auto", "sam", "medsam", "litemedsam", "efficientsam")
# Forms that only some backends build (none: they are run as ONNX).
BUILT_BY: dict[str, tuple[str, ...]] = {"ort-cpu": ()}
OPTIONAL_TEXT = (str, None)
# `ExportConfig` as a manifest has it.
PLAIN: dict[Any, Any] = {
    **dict.fromkeys(
        ("model", "preprocessing", "method", "mlp", "precision", "backend", "target", "form", "plugins"), str
    ),
    **dict.fromkeys(("checkpoint", "variant", "layers", "compat"), OPTIONAL_TEXT),
    "rate": (float, str, None),
    "mlp_density": (float, None),
    "opset": int,
    "batch": int,
    "prompt_aware": bool,
    "images": [str],
    "params": [[str]],
}


@dataclass(frozen=True)
class ExportConfig:
    """Options of one export.

    `model` "auto" reads the architecture from `checkpoint`, and becomes "demo" where there is none; `preprocessing`
    "auto" is the model's own ("sam" for one that is read). `checkpoint` and `images` are paths as text; `rate` is the
    fraction of tokens removed, as a number or by layers ("0.3:0-5,0.6:6-11"), None for the method's default; `mlp` is a
    policy or policies by layers ("merge:0-3,residual-consistency:4-7"); `layers` None for the method's own (all, but
    for cubist from a quarter of the depth on); `params` are the method's own
    parameters as (name, value) pairs; `precision` "auto" becomes fp16, or fp32 where that would not do; `target` is a
    comma list of sm86, sm89, ... or "current", or "auto" (this GPU, else sm86,sm89); `form` is what the graph is
    written for: "portable", "attention" (ONNX's operator, opset 23) or "ort-cpu" (ONNX Runtime on a CPU, FP32);
    `plugins` are fused operators: "none", "all" or a comma list of `fused.PLUGINS`.
    """

    model: str = "auto"
    checkpoint: str | None = None
    preprocessing: str = "auto"
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
    plugins: str = "none"
    batch: int = 1
    images: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.checkpoint == "" or "" in self.images:
            raise UsageError("The path of the checkpoint or of an image is empty. Pass one, or leave it away.")
        if self.model == "auto" and self.checkpoint is None:
            object.__setattr__(self, "model", "demo")
        if self.preprocessing not in PREPROCESSINGS:
            raise unknown_name("preprocessing", self.preprocessing, PREPROCESSINGS)
        if self.precision not in PRECISIONS:
            raise UsageError(f"Precision '{self.precision}' is not available. Choose from: {', '.join(PRECISIONS)}.")
        if self.backend not in ("auto", "none", *BACKENDS):
            raise unknown_name("backend", self.backend, ("auto", *BACKENDS, "none"))
        if not 1 <= self.batch <= LARGEST_BATCH:
            raise UsageError(
                f"Batch {shortened(self.batch)} is not a number of images. Pass --batch 1 to {LARGEST_BATCH}."
            )
        if not 18 <= self.opset <= 23:
            raise UsageError(f"Opset {self.opset} is not supported. Pass --opset 18 to 23.")
        self._check_form()
        if chosen(self.plugins) and self.form != "portable":
            raise UsageError(f"--plugins are put into portable graphs. Leave --form {self.form} or --plugins away.")

    def _check_form(self) -> None:
        if self.form not in FORMS:
            raise UsageError(f"Unknown form '{self.form}'. Choose from: {', '.join(FORMS)}.")
        if self.form == "attention" and self.opset < 23:
            raise UsageError("ONNX has an Attention operator from opset 23 on. Pass --opset 23 with --form attention.")
        if self.form == "attention" and self.precision == "fp32" and self.backend != "none":
            raise UsageError(
                "TensorRT has kernels for Attention in FP16 and BF16 only. Pass --precision fp16 or --backend none."
            )
        if self.backend not in ("auto", "none") and not self.buildable_by(self.backend):
            raise UsageError(
                f"--form {self.form} uses operators of one runtime, which {self.backend} has not. Pass another --form."
            )
        if self.form == "ort-cpu" and self.precision not in ("auto", "fp32"):
            raise UsageError(f"--form ort-cpu computes in FP32. Pass --precision fp32, not {self.precision}.")

    def anywhere(self) -> ExportConfig:
        """The same with absolute paths, so that later stages find the files from whatever folder they are run in."""
        checkpoint = str(Path(self.checkpoint).absolute()) if self.checkpoint else self.checkpoint
        return replace(self, checkpoint=checkpoint, images=tuple(str(Path(path).absolute()) for path in self.images))

    @property
    def buildable(self) -> bool:
        """Whether any backend builds graphs of this form; others are run as ONNX files."""
        return BUILT_BY.get(self.form) != ()

    def buildable_by(self, backend: str) -> bool:
        """Whether a backend takes graphs of this form."""
        return self.form not in BUILT_BY or backend == "onnxruntime" or backend in BUILT_BY[self.form]

    @property
    def model_name(self) -> str:
        """What folders and reports call the model: its name, or its checkpoint's if that is what it is read from."""
        name = checkpoint_name(self.checkpoint) if self.model == "auto" and self.checkpoint else self.model
        name = re.sub(r"[^\w.-]", "-", name) if name.startswith("timm:") else name  # a colon is no part of file names
        return name if self.preprocessing == "auto" else f"{name}-{self.preprocessing}"

    def folder_name(self, rate: float | str) -> str:
        """Default output folder: <model>-<method>-r<rate*100>-<precision>; other options only where they are given."""
        parts = [self.model_name, self.method]
        if self.variant:
            parts.append(self.variant)
        parts += [option for option in (self.compat, *(f"{k}{v}" for k, v in self.params)) if option]
        if self.prompt_aware:
            parts.append("prompt")
        if self.layers is not None:
            parts.append(self.layers.replace(",", "+"))
        if self.mlp != "none":
            density = "" if self.mlp_density is None else percent(self.mlp_density)
            parts.append(f"mlp_{named(self.mlp)}" + (f"@{density}" if density and ":" in self.mlp else density))
        shown = percent(rate) if isinstance(rate, float) else named(rate)
        form = (*(() if self.form == "portable" else (self.form,)), *(("plugins",) if chosen(self.plugins) else ()))
        ending = f"-{'-'.join([f'r{shown}', self.precision, *form])}"
        name = "-".join(parts) + ending
        if len(name.encode()) <= LONGEST_NAME:
            return name
        short = hashlib.sha256(name.encode()).hexdigest()[:12]  # file systems end names at 255 bytes
        return f"{self.model_name}-{self.method}-{short}-{'-'.join([self.precision, *form])}"

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with the schema's version."""
        params = [list(pair) for pair in self.params]
        return {"schema": SCHEMA, **asdict(self), "images": list(self.images), "params": params}

    @classmethod
    def from_dict(cls, data: Any) -> ExportConfig:
        """Inverse of `to_dict`.

        Raises:
            ArtifactError: written by another version of this program, or by something else.
        """
        try:
            check(data, dict, "the configuration")
            schema, values = data.get("schema"), {k: v for k, v in data.items() if k != "schema"}
            unknown = set(values) - {f.name for f in fields(cls)}
            if schema != SCHEMA or isinstance(schema, bool) or unknown:
                raise ArtifactError(
                    f"This configuration has schema {shortened(schema)}; this version reads schema {SCHEMA}. Export "
                    "again."
                )
            check(values, PLAIN, "config")
            if not all(len(pair) == 2 for pair in values.get("params", ())):
                raise Misfit("config.params is no list of pairs")
            pairs = tuple((key, value) for key, value in values.get("params", ()))
            return cls(**{**values, "images": tuple(values.get("images", ())), "params": pairs})
        except (Misfit, UsageError) as error:
            raise ArtifactError(f"The configuration cannot be used: {error}. Export again with --force.") from error


def percent(share: float) -> str:
    """A share for a name, in per cent: as short as it can be, but never that of another share."""
    short = f"{share * 100:g}"
    return short if float(short) / 100 == share else repr(share * 100)


def named(text: str) -> str:
    """Text that names layers, as part of a file name."""
    return text.replace(" ", "").replace(",", "+").replace(":", "@")


def read_json(path: Path) -> Any:
    """Parse a JSON file of ours.

    Raises:
        ArtifactError: missing, unreadable or not JSON.
    """
    missing = f"is missing. Is {shortened(path.parent)} an output folder of structsam-export?"
    data = read_bytes(path, "File", ArtifactError, missing)
    try:
        return json.loads(data.decode("utf-8"))
    except RecursionError:
        raise ArtifactError(f"{path} is damaged (nested too deeply). Export again with --force.") from None
    except ValueError as error:  # no JSON, no UTF-8, or a number of thousands of digits
        raise ArtifactError(f"{path} is damaged ({shortened(error)}). Export again with --force.") from None
