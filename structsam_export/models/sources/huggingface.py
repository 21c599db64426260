"""Source: `SamModel` of Hugging Face's transformers, as `save_pretrained` writes it.

Its modules compute what Meta's do, under other names. One number differs: LayerNorm in the two-way transformer has
epsilon 1e-6 here and 1e-5 at Meta's. Weights of this source keep 1e-6, so that masks are those of transformers.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.errors import CheckpointError, shortened
from structsam_export.models.beside import read_object
from structsam_export.models.reading import Stated
from structsam_export.schema import Misfit, between, check, fits, share

if TYPE_CHECKING:
    from torch import Tensor

CONFIG = "config.json"
PROCESSORS = ("preprocessor_config.json", "processor_config.json")
# Patterns of names and what takes their place, all of them in this order.
RENAMES = tuple(
    (re.compile(pattern), replacement)
    for pattern, replacement in (
        (r"^vision_encoder\.layers\.(\d+)\.layer_norm([12])\.", r"image_encoder.blocks.\1.norm\2."),
        (r"^vision_encoder\.layers\.", "image_encoder.blocks."),
        (r"^vision_encoder\.patch_embed\.projection\.", "image_encoder.patch_embed.proj."),
        (r"^vision_encoder\.neck\.conv1\.", "image_encoder.neck.0."),
        (r"^vision_encoder\.neck\.layer_norm1\.", "image_encoder.neck.1."),
        (r"^vision_encoder\.neck\.conv2\.", "image_encoder.neck.2."),
        (r"^vision_encoder\.neck\.layer_norm2\.", "image_encoder.neck.3."),
        (r"^vision_encoder\.", "image_encoder."),
        (
            r"^(shared_image_embedding|prompt_encoder\.shared_embedding)\.positional_embedding$",
            "prompt_encoder.pe_layer.positional_encoding_gaussian_matrix",
        ),
        (r"^prompt_encoder\.point_embed\.", "prompt_encoder.point_embeddings."),
        (r"^prompt_encoder\.mask_embed\.conv1\.", "prompt_encoder.mask_downscaling.0."),
        (r"^prompt_encoder\.mask_embed\.layer_norm1\.", "prompt_encoder.mask_downscaling.1."),
        (r"^prompt_encoder\.mask_embed\.conv2\.", "prompt_encoder.mask_downscaling.3."),
        (r"^prompt_encoder\.mask_embed\.layer_norm2\.", "prompt_encoder.mask_downscaling.4."),
        (r"^prompt_encoder\.mask_embed\.conv3\.", "prompt_encoder.mask_downscaling.6."),
        (r"^mask_decoder\.upscale_conv1\.", "mask_decoder.output_upscaling.0."),
        (r"^mask_decoder\.upscale_layer_norm\.", "mask_decoder.output_upscaling.1."),
        (r"^mask_decoder\.upscale_conv2\.", "mask_decoder.output_upscaling.3."),
        (r"^mask_decoder\.transformer\.layer_norm_final_attn\.", "mask_decoder.transformer.norm_final_attn."),
        (r"^(mask_decoder\.transformer\.layers\.\d+)\.layer_norm(\d)\.", r"\1.norm\2."),
    )
)
# Heads of linear layers: a first, numbered ones and a last one.
HEAD = re.compile(r"^(mask_decoder\.(?:output_hypernetworks_mlps\.\d+|iou_prediction_head))\.(.*)$")
INNER = re.compile(r"layers\.(\d{1,4})\.(.*)$")

size = between(1, 1 << 16)
FORM: dict[Any, Any] = {
    "model_type": (str, None),
    "vision_config": {
        **dict.fromkeys(("image_size", "num_attention_heads"), size),
        "window_size": between(0, 1 << 16),
        "global_attn_indexes": [between(0, 1 << 16)],
        "layer_norm_eps": share,
        "hidden_act": str,
    },
    "prompt_encoder_config": {"image_size": size, "hidden_act": str},
    "mask_decoder_config": {"num_attention_heads": size, "layer_norm_eps": share, "hidden_act": str},
}
ACTIVATIONS = {"vision_config": "gelu", "prompt_encoder_config": "gelu", "mask_decoder_config": "relu"}
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class HuggingFace:
    """`SamModel`, from safetensors or `pytorch_model.bin`, whole or sharded."""

    NAME: ClassVar[str] = "huggingface"
    ANCHOR: ClassVar[str] = "vision_encoder.patch_embed.projection.weight"

    def renamed(self, state: Mapping[str, Tensor], path: Path) -> dict[str, Tensor]:
        """Tensors by Meta's names.

        Raises:
            CheckpointError: the two names of the position encoding, which are one tensor, hold different ones.
        """
        made: dict[str, Tensor] = {}
        last = _last_layers(state)
        for name, tensor in state.items():
            new = _renamed(name, last)
            if new in made and not _same(made[new], tensor):
                raise CheckpointError(
                    f"{path} holds two different tensors for {new}, {shortened(name)} being one. Load it with "
                    "transformers and save it again."
                )
            made[new] = tensor
        return made

    def stated(self, folder: Path) -> Stated:
        """What `config.json` says, where there is one; what it leaves out has the defaults of `SamConfig`.

        Raises:
            CheckpointError: the files cannot be read, are of another model, or ask for what is not supported.
        """
        path = folder / CONFIG
        for name in PROCESSORS:
            _check_processor(folder / name)
        data = read_object(path)
        if data is None or not {"model_type", "vision_config"} & set(data):
            return Stated(decoder_eps=1e-6)
        try:
            check(data, FORM, CONFIG)
        except Misfit as error:
            raise CheckpointError(f"{path} cannot be used: {error}. Get it again from where the weights are.") from None
        if data.get("model_type") not in (None, "sam"):
            raise CheckpointError(
                f"{path} describes a model of type '{shortened(data['model_type'])}', not 'sam'. Pass a SamModel's."
            )
        vision, prompts, decoder = (data.get(part, {}) for part in ACTIVATIONS)
        for part, usual in ACTIVATIONS.items():
            if (asked := data.get(part, {}).get("hidden_act", usual)) != usual:
                raise CheckpointError(f"{path} asks for '{shortened(asked)}' in {part}; SAM has '{usual}' there.")
        image = vision.get("image_size", 1024)
        if prompts.get("image_size", 1024) != image:
            raise CheckpointError(
                f"{path} gives two image sizes: {image} in vision_config and {prompts.get('image_size', 1024)} in "
                "prompt_encoder_config. Correct the one that is wrong (the default is 1024)."
            )
        return Stated(
            image_size=image,
            heads=vision.get("num_attention_heads", 12),
            window=vision.get("window_size", 14),
            global_layers=tuple(vision.get("global_attn_indexes", (2, 5, 8, 11))),
            decoder_heads=decoder.get("num_attention_heads", 8),
            encoder_eps=float(vision.get("layer_norm_eps", 1e-6)),
            decoder_eps=float(decoder.get("layer_norm_eps", 1e-6)),
        )


def _last_layers(names: Mapping[str, Any]) -> dict[str, int]:
    """Per head, the number of its last layer: one more than those between the first and the last."""
    last: dict[str, int] = {}
    for name in names:
        if found := HEAD.match(name):
            inner = INNER.match(found[2])
            last[found[1]] = max(last.get(found[1], 1), int(inner[1]) + 2 if inner else 1)
    return last


def _renamed(name: str, last: Mapping[str, int]) -> str:
    if found := HEAD.match(name):
        head, rest = found[1], found[2]
        if inner := INNER.match(rest):
            return f"{head}.layers.{int(inner[1]) + 1}.{inner[2]}"
        rest = re.sub(r"^proj_in\.", "layers.0.", rest)
        return f"{head}.{re.sub(r'^proj_out[.]', f'layers.{last[head]}.', rest)}"
    for pattern, replacement in RENAMES:
        name = pattern.sub(replacement, name)
    return name


def _same(a: Tensor, b: Tensor) -> bool:
    """Whether two small tensors are equal."""
    import torch

    small = a.shape == b.shape and a.dtype == b.dtype and a.numel() <= 1 << 16
    return small and bool(torch.equal(a, b))


def _check_processor(path: Path) -> None:
    """Refuse another normalisation of images than SAM's.

    Raises:
        CheckpointError: it is another, or the file cannot be read.
    """
    data = read_object(path) or {}
    inner = data.get("image_processor", data)
    for key, usual in (("image_mean", MEAN), ("image_std", STD)):
        values = inner.get(key, usual) if isinstance(inner, dict) else usual
        right = fits(list(values) if isinstance(values, tuple) else values, [float]) and len(values) == 3
        if not right or any(abs(a - b) > 0.005 for a, b in zip(values, usual)):
            raise CheckpointError(
                f"{path} has {key} {shortened(values)} where SAM has {list(usual)}; other input normalisations are not "
                "supported."
            )
