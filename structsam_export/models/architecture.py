"""The architecture of a `segment_anything` `Sam`: what is needed to build one that weights fit into.

`reading.py` beside this file finds it in the weights, `build` makes the modules.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from structsam_export.geometry import EncoderGeometry
from structsam_export.stages import TinyStages

if TYPE_CHECKING:
    from segment_anything.modeling import Sam

SAM_EPS = 1e-6  # of SAM's LayerNorms but for those of its two-way transformer
SAM_DECODER_EPS = 1e-5
SAM_DECODER_HEADS = 8


@dataclass(frozen=True)
class DecoderGeometry:
    """Sizes of a prompt encoder and a mask decoder, beside the embedding's channels.

    Args:
        mask_channels: channels that a mask input has before it becomes an embedding; 0: prompts are no masks.
        layers: layers of the two-way transformer.
        heads: attention heads of its layers.
        inner_dim: channels of its cross attention.
        mlp_dim: hidden channels of its MLPs.
        masks: mask tokens: SAM's single mask and its three others.
        iou_layers, iou_dim: layers and hidden channels of the head that guesses each mask's IoU.
    """

    mask_channels: int = 16
    layers: int = 2
    heads: int = SAM_DECODER_HEADS
    inner_dim: int = 128
    mlp_dim: int = 2048
    masks: int = 4
    iou_layers: int = 3
    iou_dim: int = 256


@dataclass(frozen=True)
class Architecture:
    """One `Sam`.

    Args:
        encoder: sizes of the image encoder.
        decoder: sizes of what comes after it.
        qkv_bias: whether the encoder's projections have biases.
        positions: whether its attention has relative positions.
        encoder_eps, decoder_eps: epsilon of LayerNorm in the encoder, and in the layers of the two-way transformer.
        family: a key of `models.families.FAMILIES`.
        stages: of a TinyViT encoder; None: SAM's own ViT.
    """

    encoder: EncoderGeometry
    decoder: DecoderGeometry = DecoderGeometry()
    qkv_bias: bool = True
    positions: bool = True
    encoder_eps: float = SAM_EPS
    decoder_eps: float = SAM_DECODER_EPS
    family: str = "sam"
    stages: TinyStages | None = None

    def to_dict(self) -> dict[str, Any]:
        """The fields as JSON holds them."""
        made = {**asdict(self), "encoder": self.encoder.to_dict()}
        del made["stages"]
        return made if self.stages is None else {**made, "stages": self.stages.to_dict()}

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Architecture:
        """Inverse of `to_dict`, of values that `manifest.check_architecture` has seen."""
        parts: dict[str, Any] = {
            "encoder": EncoderGeometry.from_dict(data["encoder"]),
            "decoder": DecoderGeometry(**data["decoder"]),
        }
        if "stages" in data:
            parts["stages"] = TinyStages.from_dict(data["stages"])
        return cls(**{**data, **parts})

    @property
    def words(self) -> str:
        """What it is, in words: "1024 px, 168 wide, 12 blocks (global: 2, 5, 8, 11; windows of 14), ..."."""
        e, t = self.encoder, self.stages
        if t is not None:
            widths = ", ".join(map(str, t.dims))
            return f"{e.image_size} px, TinyViT, {widths} wide, {sum(t.depths)} blocks, {e.out_channels} channels"
        globally = ", ".join(map(str, e.global_layers)) or "none"
        return (
            f"{e.image_size} px, {e.dim} wide, {e.depth} blocks (global: {globally}; windows of "
            f"{max(e.windows, default=0)}), {e.heads} heads of {e.head_dim}, MLP {e.mlp_dim}, {e.out_channels} channels"
        )


def build(architecture: Architecture) -> Sam:
    """A `segment_anything` `Sam` of this architecture, with random weights (none at all on the meta device)."""
    from segment_anything.modeling import MaskDecoder, PromptEncoder, Sam, TwoWayTransformer

    made: Sam = build_with(
        architecture,
        encoder=build_encoder(architecture),
        prompts=PromptEncoder,
        transformer=TwoWayTransformer,
        decoder=MaskDecoder,
        whole=Sam,
    )
    return made


def build_with(
    architecture: Architecture, *, encoder: Any, prompts: Any, transformer: Any, decoder: Any, whole: Any
) -> Any:
    """As `build`, around a finished encoder, of classes that take what `segment_anything`'s take."""
    e, d = architecture.encoder, architecture.decoder
    made_prompts = prompts(e.out_channels, e.grid, (e.image_size, e.image_size), d.mask_channels)
    made_transformer = transformer(
        depth=d.layers,
        embedding_dim=e.out_channels,
        mlp_dim=d.mlp_dim,
        num_heads=d.heads,
        attention_downsample_rate=e.out_channels // d.inner_dim,
    )
    made_decoder = decoder(
        num_multimask_outputs=d.masks - 1,
        transformer=made_transformer,
        transformer_dim=e.out_channels,
        iou_head_depth=d.iou_layers,
        iou_head_hidden_dim=d.iou_dim,
    )
    return with_decoder_eps(whole(encoder, made_prompts, made_decoder), architecture.decoder_eps)


def build_encoder(architecture: Architecture, vit: Any = None) -> Any:
    """The image encoder alone, as `build`; `vit`: a class to use for `segment_anything`'s."""
    import torch
    from segment_anything.modeling import ImageEncoderViT

    e = architecture.encoder
    if architecture.stages is not None:
        from structsam_export.models.tiny_vit import TinyViT

        return TinyViT(architecture.stages, e.image_size, e.out_channels)
    return (vit or ImageEncoderViT)(
        img_size=e.image_size,
        patch_size=e.patch_size,
        embed_dim=e.dim,
        depth=e.depth,
        num_heads=e.heads,
        mlp_ratio=(e.mlp_dim + 0.5) / e.dim,  # it takes the floor of the product, which may lie below the whole number
        out_chans=e.out_channels,
        norm_layer=partial(torch.nn.LayerNorm, eps=architecture.encoder_eps),
        qkv_bias=architecture.qkv_bias,
        use_rel_pos=architecture.positions,
        global_attn_indexes=e.global_layers,
        window_size=max(e.windows, default=0),
    )


def with_decoder_eps(sam: Any, eps: float) -> Any:
    """Set epsilon in the layers of the two-way transformer; its last norm has PyTorch's own in every library."""
    import torch

    for module in sam.mask_decoder.transformer.layers.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = eps
    return sam
