"""Host: `segment_anything`'s ImageEncoderViT.

A merging block merges between norm1 and qkv and unmerges after proj: `proj(unmerge(y)) == unmerge(proj(y))`, so
proj runs on n tokens at no loss. The MLP, the norms and the residual stay dense unless an MLP policy says otherwise.
Weights and state-dict keys are untouched: only the block's class changes, and the window size where the grid shrinks.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from structsam_export.methods.importance import cell_rank
from structsam_export.methods.tokens import Layout, Tokens
from structsam_export.models.geometry import from_encoder
from structsam_export.patch.attention import attention
from structsam_export.patch.roles import Decision, Role, assign
from structsam_export.patch.stripe import all_keys, stripe_attention

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.methods import Method


def apply(encoder: Any, blocks: Mapping[int, Method], mlp: Any = None) -> None:
    """Patch the given blocks with their methods; blocks where nothing is removed stay stock."""
    for index, role in assign(from_encoder(encoder), blocks, mlp).items():
        block = encoder.blocks[index]
        block._structsam = role
        block.__class__ = _patched_class(type(block))
        block.window_size = role.layout.window


def remove(encoder: Any) -> None:
    """Give every patched block its own class and window size back."""
    for block in encoder.blocks:
        if hasattr(block, "_structsam"):
            block.window_size = block._structsam.window
            block.__class__ = type(block).__bases__[0]
            del block._structsam


def roles_of(encoder: Any) -> dict[int, Role]:
    """Roles of the patched blocks, by number."""
    return {i: block._structsam for i, block in enumerate(encoder.blocks) if hasattr(block, "_structsam")}


def decisions_of(encoder: Any) -> list[tuple[str, tuple[str, ...]]]:
    """Names and parts of all decisions a forward pass takes, in order."""
    return [name for _, role in sorted(roles_of(encoder).items()) for name in role.names]


def reduced_blocks(encoder: Any) -> tuple[int, ...]:
    """Blocks whose attention computes less than the stock one."""
    return tuple(i for i, role in sorted(roles_of(encoder).items()) if role.reduced)


@contextmanager
def recording(encoder: Any) -> Iterator[dict[str, Decision]]:
    """Collect the decisions of forward passes in the `with` block, by name ("plan.3", "grid.2", "mlp.2")."""
    decisions: dict[str, Decision] = {}
    roles = roles_of(encoder)
    for role in roles.values():
        role.shared.decisions = decisions
    try:
        yield decisions
    finally:
        for role in roles.values():
            role.shared.decisions = None


@contextmanager
def observed(encoder: Any) -> Iterator[dict[int, Tensor]]:
    """Collect what merge methods would see in the blocks of a stock encoder: features (B, H, W, d), by block."""
    features: dict[int, Tensor] = {}

    def watch(index: int, attn: Any) -> Any:
        return lambda module, inputs, y: features.update({index: head_mean(attn, y)})

    hooks = [b.norm1.register_forward_hook(watch(i, b.attn)) for i, b in enumerate(encoder.blocks)]
    try:
        yield features
    finally:
        for hook in hooks:
            hook.remove()


@contextmanager
def prompted(encoder: Any, boxes: Tensor | None) -> Iterator[None]:
    """Forward passes in the `with` block know the prompt: boxes (B, 4), x0 y0 x1 y1 in input pixels."""
    roles = roles_of(encoder)
    region = None
    if boxes is not None:
        from structsam_export.methods.prompt_aware import prompt_region

        geometry = from_encoder(encoder)
        region = prompt_region(boxes, geometry.grid, geometry.patch_size)
    for role in roles.values():
        role.shared.region = region
    try:
        yield
    finally:
        for role in roles.values():
            role.shared.region = None


def _patched_class(stock: type) -> type:
    """A subclass of the stock block whose forward follows the block's role."""
    return type(f"Patched{stock.__name__}", (stock,), {"forward": _forward})


def _forward(block: Any, x: Tensor) -> Tensor:
    """Block forward by role: x (B, H, W, D) -> (B, H, W, D)."""
    role: Role = block._structsam
    if role.shrink is not None:
        x = _shrink(role, x)
    y = block.norm1(x)
    layout = Layout((int(y.shape[1]), int(y.shape[2])), block.window_size)
    out, plan = _attend(block, role, y, layout)
    x = x + out
    x = _update(block, role, x, layout, plan)
    if role.restore:
        x = role.shared.grid.unmerge(x)
    if role.last:
        role.shared.clear()
    return x


def _shrink(role: Role, x: Tensor) -> Tensor:
    """Reduce the grid of the residual stream (B, H, W, D) -> (B, H', W', D)."""
    import torch

    assert role.shrink is not None
    method, layout = role.shrink
    kept: list[Tensor] = []

    def choose(tokens: Tensor) -> Any:
        small, plan = method.reduce(tokens, layout)
        kept.append(small)
        return plan

    with torch.no_grad():
        role.shared.grid = role.shared.decide(f"grid.{role.index}", choose, x)
    return kept[0]


def _attend(block: Any, role: Role, y: Tensor, layout: Layout) -> tuple[Tensor, Any]:
    """Attention of normalised tokens y (B, H, W, D) -> (B, H, W, D), and the plan it followed."""
    if role.attend is None or role.attend.KIND == "keys":
        if role.rank:
            _rank(role, all_keys(block.attn, y), layout)
        if role.attend is None or not role.attend.removed(layout):
            return _stock_attention(block.attn, y, layout), None
        shared, method = role.shared, role.attend
        if not method.needs_rank(layout):
            return stripe_attention(block.attn, y, method.plan(None, layout, y.shape[0], y.device)), None

        def choose(keys: Tensor) -> Any:
            return method.plan(cell_rank(keys, layout.grid), layout, keys.shape[0])

        taken = method.plan(shared.rank, layout, y.shape[0])
        plan = shared.decide(f"plan.{role.index}", choose, shared.keys, plan=taken)
        return stripe_attention(block.attn, y, plan), None
    return _merged_attention(block.attn, role, y, layout)


def _stock_attention(attn: Any, y: Tensor, layout: Layout) -> Tensor:
    """The block's own attention, window by window."""
    windows = layout.partition(y)
    return layout.unpartition(attn(windows.view(-1, *layout.side, y.shape[-1])).flatten(1, 2))


def _merged_attention(attn: Any, role: Role, y: Tensor, layout: Layout) -> tuple[Tensor, Any]:
    """Attention over merged tokens."""
    import torch

    shared, method = role.shared, role.attend
    with torch.no_grad():
        features = head_mean(attn, y)
        inputs = (features,) if shared.region is None else (features, shared.region)
        plan = shared.decide(f"plan.{role.index}", lambda *given: _plan(method, layout, *given), *inputs)
    keys: list[Tensor] = []

    def compute(tokens: Tensor, pos: Tensor | None) -> Tensor:
        if pos is None:
            return attn(tokens.view(-1, *layout.side, tokens.shape[-1])).flatten(1, 2)  # type: ignore[no-any-return]
        out, k = attention(attn, tokens, pos, layout.side)
        keys.append(k)
        return out

    out = layout.unpartition(plan.through(layout.partition(y), compute))
    if role.rank:
        k = keys[0]  # a merged token's key stands for every token it holds
        spread = plan.unmerge(k.transpose(1, 2).flatten(2)).unflatten(2, (k.shape[1], -1)).transpose(1, 2)
        _rank(role, spread, layout)
    return out, plan


def head_mean(attn: Any, y: Tensor) -> Tensor:
    """Features that plans are made from: normalised tokens y (B, H, W, D) averaged over heads (B, H, W, d)."""
    return y.view(*y.shape[:3], attn.num_heads, -1).mean(3)


def _plan(method: Any, layout: Layout, features: Tensor, region: Tensor | None = None) -> Any:
    """A merge plan by a method."""
    return method.plan(Tokens(features, layout, region))


def _rank(role: Role, keys: Tensor, layout: Layout) -> None:
    """Rank cells by keys (B, heads, N, d), for this block and those that follow."""
    import torch

    shared, grid = role.shared, layout.grid
    with torch.no_grad():
        shared.keys, shared.rank = keys, cell_rank(keys, grid)
        if role.keep is not None:
            policy = role.keep
            taken = policy.plan(shared.rank, grid)
            shared.keep = shared.decide(
                f"mlp.{role.index}", lambda k: policy.plan(cell_rank(k, grid), grid), keys, plan=taken
            )


def _update(block: Any, role: Role, x: Tensor, layout: Layout, plan: Any) -> Tensor:
    """x (B, H, W, D) plus its MLP, on all tokens or as the role says."""

    def mlp(tokens: Tensor) -> Tensor:
        return block.mlp(block.norm2(tokens))  # type: ignore[no-any-return]

    if role.mlp == "rank":
        return role.shared.keep.apply(x.flatten(1, 2), mlp).view(x.shape)  # type: ignore[no-any-return]
    if role.mlp == "plan":
        return x + layout.unpartition(plan.through_real(layout.partition(x), mlp))
    return x + mlp(x)
