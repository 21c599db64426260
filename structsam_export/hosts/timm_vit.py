"""Host: timm's `VisionTransformer` and `Eva` (ViT, DeiT, DINOv2, DINOv3, EVA-02), for classification and as features.

Blocks take and give one sequence, class token and registers first, and attend globally. Absolute positions are added
before the first block, so that merged tokens carry them. Where positions are rotations of queries and keys (RoPE), a
merged token rotates by its destination's place; a grid that `cubist` made smaller gets rotations of its own, as of an
image of that many tokens (the authors' code for DINOv3 does so).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.errors import UsageError
from structsam_export.geometry import EncoderGeometry
from structsam_export.hosts.base import unlike

if TYPE_CHECKING:
    from torch import Tensor, nn

    from structsam_export.hosts.base import Decode, DecoderExport
    from structsam_export.runtime.limits import PromptLimits
    from structsam_export.views import SequenceAttention, SequenceBlock

BLOCKS = ("Block", "EvaBlock")  # norm, attention, norm, MLP, one after the other
ATTENTIONS = ("Attention", "AttentionRope", "EvaAttention")


@dataclass(frozen=True)
class Rotations:
    """An encoder's table of rotations for one of its blocks, on any grid."""

    encoder: Any
    index: int

    def __call__(self, shape: tuple[int, int], pos: Tensor | None = None) -> Tensor | None:
        """As timm's attention takes it: (H * W, 2 d), of tokens at `pos` (B, n) (B, 1, n, 2 d); None without RoPE.

        Learnt rotations have an axis of heads before that of places.

        Raises:
            UsageError: the encoder has a table for its own grid alone.
        """
        rope = getattr(self.encoder, "rope", None)
        if rope is None:
            return None
        table: Tensor = rope.get_embed(shape=list(shape))
        if getattr(self.encoder, "rope_mixed", False):
            table = table[self.index]
        if table.shape[-2] != shape[0] * shape[1]:
            raise UsageError(
                f"This model has rotations for {table.shape[-2]} tokens, not for a grid of {shape[0]} x {shape[1]}. "
                "Pass a method that keeps the grid."
            )
        if pos is None:
            return table
        rows = table if table.ndim == 3 else table.unsqueeze(0)
        return rows[:, pos].transpose(0, 1)


@dataclass(frozen=True)
class Attention:
    """View of timm's Attention, AttentionRope and EvaAttention, with the block's LayerScale behind it."""

    block: Any
    rotations: Rotations

    @property
    def module(self) -> Any:
        return self.block.attn

    @property
    def heads(self) -> int:
        return int(self.module.num_heads)

    @property
    def dim(self) -> int:
        return int(self.module.proj.in_features)

    @property
    def scale(self) -> float:
        return float(self.module.scale)

    @property
    def has_positions(self) -> bool:
        return False

    def linear(self, parts: str) -> tuple[Tensor, Tensor | None]:
        """Rows of `qkv`, or of the Linears there are in its place; EVA's keys have no bias."""
        import torch

        made = [self.projection(part) for part in parts]
        weight = torch.cat([w for w, _ in made])
        if all(b is None for _, b in made):
            return weight, None
        return weight, torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in made])

    def projection(self, part: str) -> tuple[Tensor, Tensor | None]:
        """Weight and bias of "q", "k" or "v"."""
        m = self.module
        if m.qkv is None:
            linear = getattr(m, f"{part}_proj")
            return linear.weight, linear.bias
        rows = slice("qkv".index(part) * self.dim, ("qkv".index(part) + 1) * self.dim)
        bias = m.qkv.bias[rows] if m.qkv.bias is not None else getattr(m, f"{part}_bias", None)
        return m.qkv.weight[rows], bias

    def positions(self, axis: int, size: int) -> Tensor:
        """Never asked for: there are none.

        Raises:
            UsageError: always.
        """
        raise UsageError("timm's attention has no relative positions.")

    def output(self, y: Tensor) -> Tensor:
        return scaled(self.block, 1, self.module.proj(y))

    def stock(self, x: Tensor) -> Tensor:
        shape = (int(x.shape[1]), int(x.shape[2]))
        return self.sequence(x.flatten(1, 2), shape).unflatten(1, shape)

    def sequence(
        self, x: Tensor, shape: tuple[int, int], pos: Tensor | None = None, sizes: Tensor | None = None
    ) -> Tensor:
        rotations = self.rotations(shape, pos)
        own = {} if rotations is None else {"rope": rotations}
        if sizes is not None:  # added to the scores (B, heads, queries, keys)
            n = x.shape[1]
            own["attn_mask"] = sizes.log().to(x.dtype)[:, None, None, :].expand(-1, -1, n, -1)
        return scaled(self.block, 1, self.module(x, **own))


@dataclass(frozen=True)
class Block:
    """View of timm's Block and EvaBlock."""

    module: Any
    rotations: Rotations
    prefix: int

    @property
    def norm1(self) -> nn.Module:
        return self.module.norm1

    @property
    def attention(self) -> SequenceAttention:
        return Attention(self.module, self.rotations)

    @property
    def norm2(self) -> nn.Module:
        return self.module.norm2

    @property
    def mlp(self) -> Any:
        return lambda x: scaled(self.module, 2, self.module.mlp(x))

    @property
    def window(self) -> int:
        return 0

    def to_grid(self, x: Tensor, shape: tuple[int, int]) -> Tensor:
        return x[:, self.prefix :].unflatten(1, shape)

    def from_grid(self, x: Tensor) -> Tensor:
        return x.flatten(1, 2)


def scaled(block: Any, half: int, y: Tensor) -> Tensor:
    """A block's LayerScale of its attention (1) or its MLP (2), where it has one."""
    if hasattr(block, f"ls{half}"):
        return getattr(block, f"ls{half}")(y)  # type: ignore[no-any-return]
    gamma = getattr(block, f"gamma_{half}")
    return y if gamma is None else gamma * y


class TimmClassifier:
    """A timm model with a classifier: what it gives before the classifier, and the logits."""

    ENCODER: ClassVar[str] = "TimmClassifier"
    ENCODER_INPUT: ClassVar[str] = "image"
    ENCODER_OUTPUTS: ClassVar[tuple[str, ...]] = ("image_embeddings", "logits")
    PROMPTS: ClassVar[PromptLimits | None] = None
    MASKS: ClassVar[bool] = False

    def geometry(self, encoder: nn.Module) -> EncoderGeometry:
        """Sizes of an encoder.

        Raises:
            UsageError: its blocks are of another make, or it takes no squares.
        """
        try:
            return read_geometry(encoder)
        except (AttributeError, IndexError, TypeError) as error:
            raise unlike(encoder, type(self), error) from error

    def blocks(self, encoder: Any) -> Sequence[SequenceBlock]:
        """The encoder's blocks, in order."""
        prefix = int(encoder.num_prefix_tokens)
        return [Block(block, Rotations(encoder, i), prefix) for i, block in enumerate(encoder.blocks)]

    def refusal(self, method: str) -> str | None:
        """Only of what leaves out keys."""
        if method != "sparsesam":
            return None
        return (
            "SparseSAM leaves out keys of a grid whose blocks have windows and relative positions; what its stripe of "
            "keys means for a class token is defined nowhere. Pass a method that merges tokens, or cubist."
        )

    def decoder(self, model: Any) -> Decode:
        """Never asked for: no masks.

        Raises:
            UsageError: always.
        """
        raise UsageError(NO_MASKS)

    def decoder_for_export(self, model: Any) -> DecoderExport:
        """Never asked for: no masks.

        Raises:
            UsageError: always.
        """
        raise UsageError(NO_MASKS)


NO_MASKS = "A timm model gives features and logits; masks need a SAM, with its prompt encoder and mask decoder."


class TimmBackbone(TimmClassifier):
    """A timm model without a classifier (DINOv2, DINOv3): its pooled features."""

    ENCODER: ClassVar[str] = "TimmBackbone"
    ENCODER_OUTPUTS: ClassVar[tuple[str, ...]] = ("image_embeddings",)


def read_geometry(encoder: Any) -> EncoderGeometry:
    """Sizes of a timm model; AttributeError, IndexError or TypeError if it has other parts."""
    first = encoder.blocks[0]
    for block in encoder.blocks:
        check_make(block, BLOCKS)
        check_make(block.attn, ATTENTIONS)
    (height, width), (H, W) = encoder.patch_embed.img_size, encoder.patch_embed.grid_size
    dim = int(encoder.embed_dim)
    if height != width or int(first.attn.proj.in_features) != dim:
        raise TypeError(f"images of {height} x {width}, attention of {first.attn.proj.in_features} channels")
    mlp = first.mlp
    wide = [layer for layer in mlp.modules() if hasattr(layer, "out_features")]
    tokens = H * W + encoder.num_prefix_tokens
    patch = int(encoder.patch_embed.proj.kernel_size[0])
    classes = int(encoder.num_classes)
    out = int(encoder.num_features)
    return EncoderGeometry(
        image_size=int(height),
        patch_size=patch,
        grid=(int(H), int(W)),
        dim=dim,
        depth=len(encoder.blocks),
        heads=int(first.attn.num_heads),
        # What two products of that width cost: gated MLPs have three, of which two are often one.
        mlp_dim=sum(layer.in_features * layer.out_features for layer in wide) // (2 * dim),
        out_channels=out,
        windows=(0,) * len(encoder.blocks),
        other_macs=H * W * dim * 3 * patch**2 + 5 * tokens * dim + out * classes,
        prefix=int(encoder.num_prefix_tokens),
        positions=False,
    )


def check_make(module: Any, known: tuple[str, ...]) -> None:
    """TypeError for a module of timm whose class, patched or not, is another one than those that are known here."""
    if not any(cls.__name__ in known and cls.__module__.startswith("timm.") for cls in type(module).__mro__):
        raise TypeError(f"{type(module).__name__} is none of {', '.join(known)}")
