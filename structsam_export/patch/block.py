"""The patched block: it follows its role, on any host, by any method.

A merging block merges between norm1 and the projections to queries, keys and values, and unmerges after the output
projection: `output(unmerge(y)) == unmerge(output(y))`, so that one runs on n tokens at no loss. MLP, norms and residual
stay dense unless an MLP policy says otherwise. Weights and state-dict keys are untouched: only classes change.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from structsam_export.patch.attention import attention
from structsam_export.patch.state import NAME, PatchedBlock
from structsam_export.patch.stripe import all_keys, stripe_attention
from structsam_export.roles import Decision
from structsam_export.tokens import WindowGrid

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.roles import Keys
    from structsam_export.views import AttentionView, BlockView


@dataclass(frozen=True)
class BlockStep:
    """One patched block in one forward pass; implements `roles.Step`, which says what each member means."""

    carried: PatchedBlock
    grid: WindowGrid
    memory: dict[str, Any]

    @property
    def index(self) -> int:
        return self.carried.role.index

    @property
    def block(self) -> BlockView:
        return self.carried.view

    @property
    def region(self) -> Tensor | None:
        return self.carried.patch.region

    @property
    def ranks(self) -> bool:
        return self.carried.role.rank is not None

    def decide(self, kind: str, choose: Callable[..., Any], *inputs: Any, plan: Any = None) -> Any:
        plan = choose(*inputs) if plan is None else plan
        decisions = self.carried.patch.decisions
        if decisions is not None:
            decisions[f"{kind}.{self.index}"] = Decision(plan, choose, inputs)
        return plan

    def features(self, y: Tensor) -> Tensor:
        return head_mean(self.block.attention, y)

    def keys(self, y: Tensor) -> Tensor:
        return all_keys(self.block.attention, y)

    def rank(self, keys: Tensor) -> None:
        if self.carried.role.rank is not None:
            self.carried.role.rank(self, keys)

    def stock(self, x: Tensor) -> Tensor:
        return self.block.attention.stock(x.view(-1, *self.grid.window_shape, x.shape[-1])).flatten(1, 2)

    def attend(self, x: Tensor, pos: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        return attention(self.block.attention, x, pos, self.grid.window_shape, sizes)

    def attend_to(self, y: Tensor, plan: Keys) -> Tensor:
        return stripe_attention(self.block.attention, y, plan)

    def mlp(self, x: Tensor) -> Tensor:
        return self.block.mlp(self.block.norm2(x))  # type: ignore[no-any-return]


def head_mean(attn: AttentionView, y: Tensor) -> Tensor:
    """Features that plans are made from: normalised tokens y (B, H, W, D) averaged over heads (B, H, W, d)."""
    return y.view(*y.shape[:3], attn.heads, -1).mean(3)


def patched_class(stock: type, follow: Callable[..., Any] | None = None) -> type:
    """A subclass of the stock block whose forward follows the block's role, by `follow` or by `forward`."""
    return type(f"Patched{stock.__name__}", (stock,), {"forward": follow or forward})


def forward(module: Any, x: Tensor) -> Tensor:
    """Block forward by role, x as the stock block takes and gives it."""
    carried: PatchedBlock = getattr(module, NAME)
    role, view = carried.role, carried.view
    # A block that is called on its own, outside of its encoder, leaves nothing behind.
    memory = {} if carried.patch.memory is None else carried.patch.memory
    x = view.to_grid(x, carried.entry)
    if role.enter is not None:
        x = role.enter(BlockStep(carried, role.grid, memory), x)
    y = view.norm1(x)
    step = BlockStep(carried, WindowGrid((int(y.shape[1]), int(y.shape[2])), role.grid.window), memory)
    out, plan = role.attend(step, y) if role.attend is not None else (dense_attention(step, y), None)
    x = x + out
    x = x + step.mlp(x) if role.mlp is None else role.mlp.update(step, x, plan)
    if role.leave is not None:
        x = role.leave(step, x)
    return view.from_grid(x)


def dense_attention(step: BlockStep, y: Tensor) -> Tensor:
    """The block's own attention of normalised tokens y (B, H, W, D), window by window; ranks cells where asked to."""
    if step.ranks:
        step.rank(step.keys(y))
    return step.grid.unpartition(step.stock(step.grid.partition(y)))
