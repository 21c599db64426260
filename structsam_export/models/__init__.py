"""The models: where their weights come from, and loading them safely.

`MODELS` is the registry; `load_model` returns a float32 `segment_anything` `Sam` that is ready to run.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.errors import CheckpointError, UsageError, unknown_name

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

    from structsam_export.geometry import EncoderGeometry
    from structsam_export.models.architecture import Architecture
    from structsam_export.models.checkpoint import Weights
    from structsam_export.runtime.cropped import DataConfig

AUTO = "auto"  # the model whose architecture is read from its checkpoint


@dataclass(frozen=True)
class ModelSpec:
    """One model.

    Args:
        name: what `--model` takes.
        title: what reports print.
        architecture: a key of `ARCHITECTURES`.
        preprocessing: "sam" (resize the long side, normalise, pad), "medsam" (resize to a square, scale to 0..1) or
            "litemedsam" (resize the long side, scale to 0..1, pad) or "efficientsam" (stretch to a square, normalise).
        url: official weights, or None.
        sha256: hex digest of the official file, or None.
        bytes: size of the official file, or None.
        bundled: whether the weights are those inside the package.
        resized: whether weights of another image size are taken, their positions interpolated to this model's grid.
    """

    name: str
    title: str
    architecture: str
    preprocessing: str
    url: str | None = None
    sha256: str | None = None
    bytes: int | None = None
    resized: bool = False
    bundled: bool = False


@dataclass(frozen=True)
class LoadedModel:
    """A model with its weights: `sam` is float32, in eval mode and needs no gradients.

    `sha256` is the hex digest of the file `checkpoint`, or of the digests of its files if there are several; `source`
    is a key of `SOURCES`, or "timm". `architecture` is what was read from the weights, None for a model of `MODELS`;
    `data` how photos are prepared for a model of timm.
    """

    spec: ModelSpec
    sam: Sam
    checkpoint: Path
    sha256: str
    geometry: EncoderGeometry
    source: str = "meta"
    architecture: Architecture | None = None
    data: DataConfig | None = None

    @property
    def draws_masks(self) -> bool:
        """Whether the model has a decoder, which draws masks; others give features, and logits if they classify."""
        from structsam_export.hosts import host_of

        return host_of(self.sam.image_encoder).MASKS

    @property
    def weights(self) -> str:
        """Names the weights as they are used: the file's SHA-256, and the image size they were fitted to, if any."""
        return f"{self.sha256}@{self.geometry.image_size}" if self.spec.resized else self.sha256


_OFFICIAL = "https://dl.fbaipublicfiles.com/segment_anything/"

_SPECS = (
    ModelSpec("demo", "bundled demo model", "demo", "sam", bundled=True),
    ModelSpec("demo-1024", "bundled demo model at 1024 px", "demo-1024", "sam", resized=True, bundled=True),
    ModelSpec(
        "vit_b",
        "SAM ViT-B",
        "vit_b",
        "sam",
        _OFFICIAL + "sam_vit_b_01ec64.pth",
        "ec2df62732614e57411cdcf32a23ffdf28910380d03139ee0f4fcbe91eb8c912",
        375_042_383,
    ),
    ModelSpec(
        "vit_l",
        "SAM ViT-L",
        "vit_l",
        "sam",
        _OFFICIAL + "sam_vit_l_0b3195.pth",
        "3adcc4315b642a4d2101128f611684e8734c41232a17c648ed1693702a49a622",
        1_249_524_607,
    ),
    ModelSpec(
        "vit_h",
        "SAM ViT-H",
        "vit_h",
        "sam",
        _OFFICIAL + "sam_vit_h_4b8939.pth",
        "a7bf3b02f3ebf1267aba913ff637d9a2d5c33d3173bb679e46d9f338c26f262e",
        2_564_550_879,
    ),
    ModelSpec("medsam", "MedSAM ViT-B", "vit_b", "medsam"),
    ModelSpec("sam_hq_vit_b", "SAM-HQ ViT-B", "sam_hq_vit_b", "sam"),
    ModelSpec("sam_hq_vit_l", "SAM-HQ ViT-L", "sam_hq_vit_l", "sam"),
    ModelSpec("sam_hq_vit_h", "SAM-HQ ViT-H", "sam_hq_vit_h", "sam"),
    ModelSpec("efficient_sam_ti", "EfficientSAM-Ti", "efficient_sam_ti", "efficientsam", resized=True),
    ModelSpec("efficient_sam_s", "EfficientSAM-S", "efficient_sam_s", "efficientsam", resized=True),
)

# Architecture -> "module:function" that builds it with random weights.
ARCHITECTURES = {
    "demo": "structsam_export.models.demo:build_demo",
    "demo-1024": "structsam_export.models.demo:build_demo_1024",
    "vit_b": "segment_anything:build_sam_vit_b",
    "vit_l": "segment_anything:build_sam_vit_l",
    "vit_h": "segment_anything:build_sam_vit_h",
    **{f"sam_hq_vit_{size}": f"structsam_export.models.families.sam_hq:build_vit_{size}" for size in "blh"},
    **{f"efficient_sam_{s}": f"structsam_export.models.families.efficient_sam:build_{s}" for s in ("ti", "s")},
}
MODELS: dict[str, ModelSpec] = {spec.name: spec for spec in _SPECS}


def model_spec(name: str) -> ModelSpec:
    """The registry entry behind a name.

    Raises:
        UsageError: unknown name; the message lists the known ones.
    """
    if name not in MODELS:
        raise unknown_name("model", name, (AUTO, *MODELS))
    return MODELS[name]


def load_model(
    name: str,
    checkpoint: Path | None = None,
    *,
    preprocessing: str | None = None,
    architecture: Architecture | None = None,
) -> LoadedModel:
    """Build model `name` and load its weights.

    Args:
        name: a key of `MODELS`, "timm:" and a name of timm's, or "auto": the architecture is read from `checkpoint`.
        checkpoint: a file, a folder or an index of sharded weights; None: the bundled or official file.
        preprocessing: as in `ModelSpec`; None: the model's own, for "auto" its family's.
        architecture: for "auto", what an earlier run has read from these weights; None: read it.

    Raises:
        UsageError: unknown name, or "auto" without a checkpoint.
        CheckpointError: weights are missing, corrupt or of another model, or cannot be downloaded.
        OutputError: the download cannot be stored.
    """
    from structsam_export.hosts import encoder_of, host_of
    from structsam_export.models.architecture import with_decoder_eps
    from structsam_export.models.checkpoint import read_weights
    from structsam_export.models.families import family
    from structsam_export.models.fit import load_into
    from structsam_export.models.positions import fitted
    from structsam_export.models.timm_models import TIMM, load_timm

    if name.startswith(TIMM):
        if preprocessing is not None:
            raise UsageError(f"{name} has a preprocessing of its own. Leave --preprocessing away.")
        return load_timm(name, checkpoint)
    spec = ModelSpec(AUTO, "", AUTO, "sam") if name == AUTO else model_spec(name)
    path, digest = _place(spec, checkpoint)
    weights = read_weights(path)
    if name == AUTO:
        sam, state, found = _read(weights, path, architecture)
        kind = family(found.family)
        spec = replace(spec, title=f"{kind.TITLE}, {found.words}", preprocessing=kind.preprocessing(found))
    else:
        sam, state, found = with_decoder_eps(_build(spec.architecture), weights.stated.decoder_eps), weights.state, None
    if name == AUTO or spec.resized:
        state = fitted(state, sam.state_dict())
    load_into(sam, state, path, name)
    sam.eval().requires_grad_(False)
    if preprocessing is not None:
        spec = replace(spec, preprocessing=preprocessing)
    geometry = host_of(encoder_of(sam)).geometry(encoder_of(sam))
    return LoadedModel(spec, sam, path, digest or digest_of(weights.files), geometry, weights.source, found)


def _place(spec: ModelSpec, checkpoint: Path | None) -> tuple[Path, str | None]:
    """Where a model's weights are, and their SHA-256 if it is known already: hashing ViT-H takes seconds."""
    from structsam_export.models.download import fetch

    if checkpoint is not None:
        return Path(checkpoint), None
    if spec.name == AUTO:
        raise UsageError("--model auto reads the architecture from a checkpoint. Pass one with --checkpoint.")
    if spec.bundled:
        return _bundled(), None
    return fetch(spec), spec.sha256


def _read(weights: Weights, path: Path, architecture: Architecture | None) -> tuple[Any, dict[str, Any], Architecture]:
    """A `Sam` without storage of the architecture that weights have, those weights, and the architecture.

    Raises:
        CheckpointError: they do not say it, or are of another family.
    """
    import torch

    from structsam_export.models.families import SAM, family, family_of
    from structsam_export.models.fit import refuse_relatives

    kind = family(architecture.family) if architecture else family_of(weights.state)
    if kind.NAME == SAM:
        refuse_relatives(weights.state, path)
    found = architecture or kind.read(weights.state, weights.stated, path)
    with torch.device("meta"):
        sam = kind.build(found)
    return sam, weights.state, found


def digest_of(paths: tuple[Path, ...]) -> str:
    """Hex SHA-256 of a file, or of the digests and names of several."""
    import hashlib

    from structsam_export.models.download import sha256_of

    if len(paths) == 1:
        return sha256_of(paths[0])
    lines = [f"{sha256_of(path)}  {path.name}\n" for path in sorted(paths)]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _bundled() -> Path:
    from importlib.resources import files

    path = Path(str(files("structsam_export"))) / "assets" / "demo.safetensors"
    if not path.is_file():
        raise CheckpointError(
            f"The bundled demo weights are missing from this installation ({path}). "
            "Reinstall structsam-export, or pass --checkpoint PATH."
        )
    return path


def _build(architecture: str) -> Any:
    """A `Sam` without storage: every tensor of its state dict is on the meta device until weights are loaded."""
    from importlib import import_module

    import torch

    module, function = ARCHITECTURES[architecture].split(":")
    # Random initialisation of ViT-H takes seconds and 2.5 GB only to be overwritten.
    with torch.device("meta"):
        return getattr(import_module(module), function)()
