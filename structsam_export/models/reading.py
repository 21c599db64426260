"""Reading an architecture from weights: the shapes of tensors say nearly all of it.

Nothing here looks at values; shapes may claim anything, so every size is checked before something is made of it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from structsam_export.errors import CheckpointError
from structsam_export.geometry import EncoderGeometry
from structsam_export.models.architecture import (
    SAM_DECODER_EPS,
    SAM_DECODER_HEADS,
    SAM_EPS,
    Architecture,
    DecoderGeometry,
)
from structsam_export.models.reading_tiny import is_tiny, read_stages
from structsam_export.models.shapes import Unreadable, count, shape
from structsam_export.models.unwrap import PATCH_EMBED

if TYPE_CHECKING:
    from torch import Tensor

POSITIONS = "image_encoder.pos_embed"
LARGEST_GRID = 256


@dataclass(frozen=True)
class Stated:
    """What a source says beside its weights; None: nothing. Weights that say otherwise are refused.

    Args:
        image_size: side of the image in pixels.
        heads: attention heads of a block of the encoder.
        window: side of its windows in tokens.
        global_layers: blocks without windows.
        decoder_heads: attention heads of the two-way transformer, which weights never say.
        encoder_eps, decoder_eps: as in `Architecture`.
        masks: whether its prompts may be masks.
    """

    image_size: int | None = None
    heads: int | None = None
    window: int | None = None
    global_layers: tuple[int, ...] | None = None
    decoder_heads: int = SAM_DECODER_HEADS
    encoder_eps: float = SAM_EPS
    decoder_eps: float = SAM_DECODER_EPS
    masks: bool = True


def read_architecture(state: Mapping[str, Tensor], stated: Stated, path: Path) -> Architecture:
    """The architecture that weights were trained in.

    Args:
        state: tensors by the names that `segment_anything`'s modules give them.
        stated: what their source says beside them.
        path: for messages.

    Raises:
        CheckpointError: shapes that do not say it, that contradict each other or `stated`, or that are absurd.
    """
    stages = None
    try:
        if is_tiny(state):
            stages, *sizes = read_stages(state)
            encoder, qkv_bias, positions = stages.geometry(*sizes), True, True
        else:
            encoder, qkv_bias, positions = _encoder(state, stated)
        decoder = _decoder(state, encoder.out_channels, stated)
    except Unreadable as error:
        raise CheckpointError(
            f"The architecture of {path} cannot be read from its weights: {error}. If it is one that --model names, "
            "pass that."
        ) from None
    return Architecture(encoder, decoder, qkv_bias, positions, stated.encoder_eps, stated.decoder_eps, stages=stages)


def _encoder(state: Mapping[str, Tensor], stated: Stated) -> tuple[EncoderGeometry, bool, bool]:
    """The encoder's sizes, whether its projections have biases, and whether it has relative positions."""
    dim, channels, patch, patch_w = shape(state, PATCH_EMBED, 4)
    one, rows, columns, width = shape(state, POSITIONS, 4)
    if (channels, patch, one, rows, width) != (3, patch_w, 1, columns, dim):
        raise Unreadable(
            f"patches of {patch} x {patch_w} of {channels} channels on a grid of {rows} x {columns} do not make a "
            "square colour image"
        )
    if rows > LARGEST_GRID:
        raise Unreadable(f"its grid of {rows} x {rows} tokens is larger than {LARGEST_GRID} x {LARGEST_GRID}")
    _agree("the image size", stated.image_size, rows * patch)
    depth = count(state, r"image_encoder\.blocks\.(\d+)\.")
    tables = [_table(state, i) for i in range(depth)]
    positions = tables[0] is not None
    if any((table is not None) != positions for table in tables):
        raise Unreadable("only some of its blocks have relative positions")
    found = [table for table in tables if table is not None]
    mlp = {shape(state, f"image_encoder.blocks.{i}.mlp.lin1.weight", 2)[0] for i in range(depth)}
    if len(mlp) > 1:
        raise Unreadable(f"MLPs of different widths ({', '.join(map(str, sorted(mlp)))}), as pruning may leave them")
    encoder = EncoderGeometry(
        image_size=rows * patch,
        patch_size=patch,
        grid=(rows, columns),
        dim=dim,
        depth=depth,
        heads=_heads(dim, {width for _, width in found}, stated),
        mlp_dim=mlp.pop(),
        out_channels=shape(state, "image_encoder.neck.0.weight", 4)[0],
        windows=_windows([side for side, _ in found], depth, rows, stated),
    )
    return encoder, "image_encoder.blocks.0.attn.qkv.bias" in state, positions


def _table(state: Mapping[str, Tensor], block: int) -> tuple[int, int] | None:
    """(tokens a side, channels) of a block's relative positions; None if it has none."""
    names = [f"image_encoder.blocks.{block}.attn.rel_pos_{axis}" for axis in "hw"]
    if not any(name in state for name in names):
        return None
    (length, width), (other, _) = (shape(state, name, 2) for name in names)
    if length != other or length % 2 == 0:
        raise Unreadable(f"relative positions of block {block} of length {length} and {other}, which no square has")
    return (length + 1) // 2, width


def _heads(dim: int, widths: set[int], stated: Stated) -> int:
    if not widths:
        if stated.heads is None:
            raise Unreadable("without relative positions they do not say how many attention heads there are")
        heads = stated.heads
    else:
        width = min(widths)
        heads = dim // width
        if len(widths) > 1 or heads * width != dim:
            raise Unreadable(f"heads of {', '.join(map(str, sorted(widths)))} channels do not fill {dim}")
        _agree("the number of attention heads", stated.heads, heads)
    if dim % heads:
        raise Unreadable(f"{dim} channels are no multiple of {heads} attention heads")
    return heads


def _windows(sides: Sequence[int], depth: int, grid: int, stated: Stated) -> tuple[int, ...]:
    """Per block the side of its windows, 0 for global attention.

    A table of relative positions is as long as the window (2 * side - 1), or as the grid in a global block; a window
    as large as the grid is a global block. Where two lengths occur, blocks of the longer one are global, also if
    their tables were never resized to the grid: SAM resizes them in every call.
    """
    if stated.window is not None and stated.global_layers is not None:
        windows = tuple(0 if i in stated.global_layers else stated.window for i in range(depth))
        for i, (side, window) in enumerate(zip(sides, windows)):
            _agree(f"the side of block {i}'s attention", window or grid, side)
        return tuple(0 if window == grid else window for window in windows)
    kinds = sorted(set(sides))
    if not kinds:
        raise Unreadable("without relative positions they do not say which blocks attend in windows")
    if kinds == [grid]:
        return (0,) * depth
    if len(kinds) != 2:
        raise Unreadable(
            f"relative positions of {', '.join(map(str, kinds))} tokens a side on a grid of {grid} do not tell windows "
            "from global attention"
        )
    if kinds[0] == grid:
        raise Unreadable(
            f"on a grid of {grid}, relative positions of {grid} and {kinds[1]} tokens a side may be windows beside "
            "global blocks whose positions were never resized, or the reverse. Resize those of global blocks to the "
            "grid"
        )
    return tuple(0 if side == kinds[1] else side for side in sides)


def _decoder(state: Mapping[str, Tensor], channels: int, stated: Stated) -> DecoderGeometry:
    layer = "mask_decoder.transformer.layers."
    masks, width = shape(state, "mask_decoder.mask_tokens.weight", 2)
    inner = shape(state, f"{layer}0.cross_attn_token_to_image.q_proj.weight", 2)[0]
    heads = stated.decoder_heads
    if width != channels or channels % inner or inner % heads or channels % 8 or channels % heads:
        raise Unreadable(
            f"a decoder of {width} channels, {inner} in its cross attention and {heads} heads does not fit an "
            f"embedding of {channels}"
        )
    return DecoderGeometry(
        mask_channels=shape(state, "prompt_encoder.mask_downscaling.3.weight", 4)[0] if stated.masks else 0,
        layers=count(state, re.escape(layer) + r"(\d+)\."),
        heads=heads,
        inner_dim=inner,
        mlp_dim=shape(state, f"{layer}0.mlp.lin1.weight", 2)[0],
        masks=masks,
        iou_layers=count(state, r"mask_decoder\.iou_prediction_head\.layers\.(\d+)\."),
        iou_dim=shape(state, "mask_decoder.iou_prediction_head.layers.0.weight", 2)[0],
    )


def _agree(what: str, stated: int | None, read: int) -> None:
    if stated is not None and stated != read:
        raise Unreadable(f"config.json says {stated} for {what}, the weights have {read}")
