"""What methods and patched blocks tell each other: plans, decisions, steps of a forward pass, and a role per block.

Neutral ground: methods fill roles without knowing a model, patched blocks follow roles without knowing a method.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

    from structsam_export.geometry import EncoderGeometry
    from structsam_export.tokens import WindowGrid
    from structsam_export.views import BlockView


# Where a method that makes the grid smaller leaves how tokens come back to it, in the memory of a forward pass:
# (B, H', W', D) -> (B, H, W, D).
RESTORE = "restore"


class Plan(Protocol):
    """What a method decided in one forward pass, as integer tensors; every kind of plan is a class of its own."""

    # Fields that hold the decision (int64 tensors): traced graphs name them, validation reads and replaces them.
    PARTS: ClassVar[tuple[str, ...]]
    # Whether all parts are one decision. Otherwise each is decided after, and from, what those before it did.
    AT_ONCE: ClassVar[bool]

    @staticmethod
    def assignment(parts: Mapping[str, np.ndarray], tokens: int) -> np.ndarray:
        """One integer for everything the plan settles: equal for plans that decide alike, however they list it.

        Args:
            parts: the integers of PARTS by name.
            tokens: tokens of one image.
        """
        ...

    def token_groups(self, grid: WindowGrid) -> np.ndarray:
        """Group of every token of the first image, int64 (H, W), for pictures: tokens of one group are treated as one.

        Args:
            grid: how the block cuts the grid of the image.
        """
        ...


@dataclass(frozen=True)
class Decision:
    """A plan as taken in one forward pass, and how to take it again: `choose(*inputs)` gives `plan`."""

    plan: Any
    choose: Callable[..., Any]
    inputs: tuple[Any, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The plan's integers by name."""
        return {part: getattr(self.plan, part) for part in self.plan.PARTS}

    def again(self, noise: float, seed: int) -> Any:
        """The plan for inputs moved by uniform noise of at most `noise` times their standard deviation."""
        import torch

        first, *others = self.inputs
        generator = torch.Generator().manual_seed(seed)
        moved = (2 * torch.rand(first.shape, generator=generator) - 1) * (noise * first.std())
        return self.choose(first + moved, *others)


class Keys(Protocol):
    """A plan that leaves out keys, as `Step.attend_to` reads it.

    `keys` (B, nk) int64 are the tokens that every query attends to; `fixed`: the same ones for every image. Where
    `own_groups` (G, n) is not empty, each query also attends to the tokens of its own group; they cover all N tokens.
    """

    @property
    def keys(self) -> Tensor: ...
    @property
    def fixed(self) -> bool: ...
    def own_groups(self, shape: tuple[int, int]) -> tuple[tuple[int, ...], ...]: ...
    def pick(self, x: Tensor) -> Tensor: ...
    def membership(self, tokens: int) -> Tensor: ...


class Step(Protocol):
    """One patched block in one forward pass, as methods and MLP policies use it.

    `grid` says how the block cuts its tokens; `region` (B, H, W) marks the prompt, None without one. `memory` lives as
    long as the forward pass: what a block leaves there, later blocks find. `block` shows norms, projections and MLP.
    """

    @property
    def index(self) -> int: ...
    @property
    def grid(self) -> WindowGrid: ...
    @property
    def block(self) -> BlockView: ...
    @property
    def region(self) -> Tensor | None: ...
    @property
    def memory(self) -> dict[str, Any]: ...
    @property
    def ranks(self) -> bool:
        """Whether the role ranks cells by this block's keys: `rank` must then be called."""
        ...

    def decide(self, kind: str, choose: Callable[..., Any], *inputs: Any, plan: Any = None) -> Any:
        """Take the decision "<kind>.<index>" as choose(*inputs), or accept `plan`; recorded if somebody asks for it."""
        ...

    def features(self, y: Tensor) -> Tensor:
        """Normalised tokens (B, H, W, D) averaged over heads, (B, H, W, d)."""
        ...

    def keys(self, y: Tensor) -> Tensor:
        """Keys of all tokens y (B, H, W, D) -> (B, heads, N, d), before any position is added."""
        ...

    def rank(self, keys: Tensor) -> None:
        """Tell the role the keys (B, heads, N, d) of this block's tokens."""
        ...

    def stock(self, x: Tensor) -> Tensor:
        """The block's own attention over whole windows (B, N, D)."""
        ...

    def attend(self, x: Tensor, pos: Tensor, sizes: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Attention among slots at places pos (B, n) of a window, (B, n, D) -> (B, n, D); and keys (B, heads, n, d).

        A slot is attended to as often as `sizes` (1 or B, n) says; None: once.
        """
        ...

    def attend_to(self, y: Tensor, plan: Keys) -> Tensor:
        """Attention of all tokens y (B, H, W, D) to the keys of a plan -> (B, H, W, D)."""
        ...

    def mlp(self, x: Tensor) -> Tensor:
        """mlp(norm2(x)) of tokens (..., D), residual not added."""
        ...


@dataclass(frozen=True)
class WindowGroup:
    """`windows` of one image that attend alike: each `queries` tokens over `keys` tokens, on average over queries."""

    windows: int
    queries: float
    keys: float


class Method(Protocol):
    """A method as blocks, tables and reports see it; `methods.base.Method` says how to write one."""

    NAME: ClassVar[str]

    @property
    def rate(self) -> float: ...
    @property
    def variant(self) -> str: ...

    def role(self, index: int, geometry: EncoderGeometry, blocks: Mapping[int, Any]) -> Role | None: ...
    def extend(self, roles: dict[int, Role], geometry: EncoderGeometry) -> dict[int, Role]: ...
    def token_counts(self, grid: WindowGrid, stock: WindowGrid) -> dict[str, Any]: ...
    def window_groups(self, grid: WindowGrid) -> list[WindowGroup]: ...
    def macs(self, grid: WindowGrid, head_dim: int) -> int: ...


class MLPAssignment(Protocol):
    """Which blocks follow which MLP policy."""

    def check(self, methods: Iterable[Any]) -> None: ...
    def extend(self, roles: dict[int, Role], geometry: EncoderGeometry) -> dict[int, Role]: ...


class MLPPolicy(MLPAssignment, Protocol):
    """On which tokens the MLPs of an encoder run."""

    def rows(self, grid: WindowGrid, groups: list[WindowGroup]) -> float: ...
    def update(self, step: Step, x: Tensor, plan: Any) -> Tensor: ...


@dataclass(frozen=True)
class Role:
    """What one block does differently; what is None stays as it is.

    Args:
        index: number of the block.
        grid: how the block cuts the (possibly smaller) grid into windows.
        method: the method that makes this block's attention compute less than the stock one.
        enter: changes the block's tokens on entry, (step, (B, H, W, D)) -> (B, H', W', D).
        attend: attention of normalised tokens, (step, (B, H, W, D)) -> ((B, H, W, D), merge plan or None).
        rank: receives the keys (B, heads, N, d) of the block's tokens, (step, keys).
        mlp: policy that the block's MLP follows.
        leave: changes the block's tokens on leaving, (step, (B, H', W', D)) -> (B, H, W, D).
        decisions: what the block decides, in order: name and kind of plan.
    """

    index: int
    grid: WindowGrid
    method: Method | None = None
    enter: Callable[[Step, Tensor], Tensor] | None = None
    attend: Callable[[Step, Tensor], tuple[Tensor, Any]] | None = None
    rank: Callable[[Step, Tensor], None] | None = None
    mlp: MLPPolicy | None = None
    leave: Callable[[Step, Tensor], Tensor] | None = None
    decisions: tuple[tuple[str, type[Plan]], ...] = ()

    @property
    def reduced(self) -> bool:
        """Whether this block's attention computes less than the stock one."""
        return self.method is not None


def role_of(roles: Mapping[int, Role], index: int, geometry: EncoderGeometry) -> Role:
    """The role of a block, or one that changes nothing yet."""
    return roles.get(index) or Role(index, geometry.window_grid(index))


def assign(
    geometry: EncoderGeometry, blocks: Mapping[int, Method], mlp: MLPAssignment | None = None
) -> dict[int, Role]:
    """Roles of all blocks that change; the others stay stock.

    Args:
        geometry: the encoder's sizes.
        blocks: method of each block.
        mlp: MLP policy, or policies by block, or None for dense MLPs.

    Raises:
        UsageError: the methods and the policy cannot work together or not on this encoder.
    """
    if mlp is not None:
        mlp.check(blocks.values())
    roles: dict[int, Role] = {}
    for index, method in sorted(blocks.items()):
        role = method.role(index, geometry, blocks)
        if role is not None:
            roles[index] = role
    for method in dict.fromkeys(blocks.values()):
        roles = method.extend(roles, geometry)
    return roles if mlp is None else mlp.extend(roles, geometry)


def blocks_of(method: Method | Mapping[int, Method], layers: Iterable[int] | None) -> dict[int, Method]:
    """One method for `layers`, or a method for each block, as a mapping from block to method."""
    if isinstance(method, Mapping):
        return dict(method)
    return dict.fromkeys(sorted(set(layers or ())), method)
