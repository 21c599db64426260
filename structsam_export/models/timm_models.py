"""Models of timm: `--model timm:NAME`, weights from a file with timm's own names.

Nothing is downloaded: timm's weights come from a hub of many owners and licences, which is the user's choice to make.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.errors import CheckpointError, MissingRuntimeError, UsageError, unknown_name
from structsam_export.runtime.cropped import CROPS, FILTERS, SMALLEST, DataConfig

if TYPE_CHECKING:
    from torch import Tensor, nn

    from structsam_export.models import LoadedModel

TIMM = "timm:"  # what names of these models begin with
CLASSES = "head.weight"


def library() -> Any:
    """The package timm.

    Raises:
        MissingRuntimeError: it is not installed.
    """
    try:
        import timm
    except ImportError as error:
        raise MissingRuntimeError(
            f"timm's models need timm ({error}). Run: pip install 'structsam-export[timm]'."
        ) from error
    return timm


def load_timm(name: str, checkpoint: Path | None) -> LoadedModel:
    """Build a model of timm and load its weights.

    Args:
        name: "timm:" and a name of `timm.list_models()`, with or without a tag.
        checkpoint: a state dict of timm's, as safetensors or a PyTorch file.

    Raises:
        UsageError: no such model, or one whose blocks are of another make.
        CheckpointError: no checkpoint, or one that cannot be used.
        MissingRuntimeError: timm is not installed.
    """
    from structsam_export.hosts import host_of
    from structsam_export.models import LoadedModel, ModelSpec, digest_of
    from structsam_export.models.beside import find
    from structsam_export.models.checkpoint import read_state_dict
    from structsam_export.models.fit import float32, refuse_misfit

    plain = name.removeprefix(TIMM)
    check_name(plain)
    if checkpoint is None:
        raise CheckpointError(
            f"--model {name} has no weights of its own here: pass timm's with --checkpoint PATH, a .safetensors or "
            f'.pth file. timm downloads and saves them: python -c "import timm, torch; '
            f"torch.save(timm.create_model('{plain}', pretrained=True).state_dict(), '{plain}.pth')\""
        )
    path = Path(checkpoint)
    state = read_state_dict(path)
    model = build(plain, int(state[CLASSES].shape[0]) if CLASSES in state and state[CLASSES].ndim == 2 else 0)
    advice = "Pass the weights of that model, by timm's own names, or another --model."
    refuse_misfit(model.state_dict(), state, path, name, advice)
    model.load_state_dict({k: float32(k, v, path) for k, v in state.items()}, strict=True)
    model.eval().requires_grad_(False)
    spec = ModelSpec(name, f"timm {plain}", "timm", "timm")
    geometry = host_of(model).geometry(model)
    return LoadedModel(
        spec, whole(model), path, digest_of(find(path).files), geometry, "timm", data=data_config(model, name)
    )


def check_name(name: str) -> None:
    """Refuse what timm does not know.

    Raises:
        UsageError: the message suggests names that are like it.
    """
    timm = library()
    if not timm.is_model(name):
        known = [n for n in timm.list_models() if "vit" in n or "deit" in n or "eva" in n]
        said = str(unknown_name("model of timm", name, known)).split(" Known ")[0]
        raise UsageError(f"{said} timm.list_models() has all names.")


def build(name: str, classes: int) -> nn.Module:
    """A model of timm with random weights, as an encoder that `hosts` knows.

    Raises:
        UsageError: neither a `VisionTransformer` nor an `Eva`, or with blocks of another make.
    """
    from structsam_export.hosts import host_of

    timm = library()
    options: dict[str, Any] = {"num_classes": classes}
    try:
        # Rotations for any grid: where cubist makes it smaller. Models without rotations lose nothing.
        model = timm.create_model(name, pretrained=False, dynamic_img_size=True, **options)
    except TypeError:  # a model that knows no such option is none of ours
        model = timm.create_model(name, pretrained=False, **options)
    kinds = [cls.__name__ for cls in type(model).__mro__]
    if not {"VisionTransformer", "Eva"} & set(kinds):
        raise UsageError(
            f"timm's {name} is a {kinds[0]}. Supported: models that are a VisionTransformer or an Eva, such as "
            "deit_base_patch16_224 or vit_base_patch16_dinov3."
        )
    made = adopt(model)
    host_of(made).geometry(made)
    return made


def adopt(model: Any) -> nn.Module:
    """Make a model of timm, in place, one that gives its features and, where it classifies, its logits."""
    import torch

    classifies = not isinstance(model.head, torch.nn.Identity)
    stock: Any = type(model)
    model.__class__ = adopted_class(stock, classifies)
    return model  # type: ignore[no-any-return]


@cache
def adopted_class(stock: Hashable, classifies: bool) -> Any:
    """A subclass of a timm class, by the name of its host in `HOSTS`."""

    def features(model: Any, image: Tensor) -> Tensor:
        """Image (B, 3, S, S) -> what timm pools of its tokens (B, C)."""
        return model.forward_head(model.forward_features(image), pre_logits=True)  # type: ignore[no-any-return]

    def both(model: Any, image: Tensor) -> tuple[Tensor, Tensor]:
        """Image (B, 3, S, S) -> what timm pools of its tokens (B, C), and logits (B, classes)."""
        tokens = model.forward_features(image)
        return model.forward_head(tokens, pre_logits=True), model.forward_head(tokens)

    name, forward = ("TimmClassifier", both) if classifies else ("TimmBackbone", features)
    bases: Any = (stock,)
    return type(name, bases, {"forward": forward})


def whole(encoder: nn.Module) -> nn.Module:
    """A model with nothing but an encoder, named as in SAM."""
    import torch

    class Whole(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.image_encoder = encoder

    return Whole().eval()


def data_config(model: Any, name: str) -> DataConfig:
    """How photos become a model's input, as its own `pretrained_cfg` says.

    Raises:
        UsageError: a way of cropping or resizing that is not built.
    """
    from timm.data import resolve_model_data_config

    said = resolve_model_data_config(model)
    kept = {key: said[key] for key in ("mean", "std", "interpolation", "crop_pct", "crop_mode")}
    made = DataConfig(**kept)
    made = replace(made, mean=tuple(map(float, made.mean)), std=tuple(map(float, made.std)))
    if made.interpolation not in FILTERS or made.crop_mode not in CROPS or not SMALLEST <= made.crop_pct <= 1:
        raise UsageError(
            f"{name} wants photos cropped by {made.crop_mode} ({made.crop_pct:g}) and resized by {made.interpolation}; "
            f"only {', '.join(CROPS)} and {', '.join(FILTERS)} are built."
        )
    return made
