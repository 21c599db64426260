"""What each block of a patched encoder has to do, and what its blocks tell each other during a forward pass."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from structsam_export.errors import UsageError
from structsam_export.methods.tokens import Layout

if TYPE_CHECKING:
    from torch import Tensor

    from structsam_export.methods import Method
    from structsam_export.models.geometry import EncoderGeometry

# Integer tensors of each kind of plan (their `parts`), known here without importing the methods.
MERGE_PARTS, KEY_PARTS = ("pos", "slot", "sources"), ("keys",)
GRID_PARTS = ("rows", "columns", "row_values", "column_values")
KEEP_PARTS = ("keep", "slot")


@dataclass(frozen=True)
class Decision:
    """A plan of one forward pass, and how to take it again: `choose(*inputs)` gives `plan`."""

    plan: Any
    choose: Callable[..., Any]
    inputs: tuple[Any, ...]

    @property
    def tensors(self) -> dict[str, Tensor]:
        """The plan's integers by name."""
        return {part: getattr(self.plan, part) for part in self.plan.parts}

    def again(self, noise: float, seed: int) -> Any:
        """The plan for inputs moved by uniform noise of at most `noise` times their standard deviation."""
        import torch

        first, *others = self.inputs
        generator = torch.Generator().manual_seed(seed)
        moved = (2 * torch.rand(first.shape, generator=generator) - 1) * (noise * first.std())
        return self.choose(first + moved, *others)


@dataclass
class Shared:
    """State of one forward pass that outlives a block; cleared after the last patched one."""

    decisions: dict[str, Decision] | None = None
    region: Tensor | None = None
    keys: Tensor | None = None
    rank: Tensor | None = None
    keep: Any = None
    grid: Any = None

    def decide(self, name: str, choose: Callable[..., Any], *inputs: Any, plan: Any = None) -> Any:
        """Take a decision (or accept one already taken), and remember it if somebody is recording."""
        plan = choose(*inputs) if plan is None else plan
        if self.decisions is not None:
            self.decisions[name] = Decision(plan, choose, inputs)
        return plan

    def clear(self) -> None:
        """Forget what belongs to one image."""
        self.keys = self.rank = self.keep = self.grid = None


@dataclass(frozen=True)
class Role:
    """What one block does differently.

    Args:
        index: number of the block.
        shared: common to all blocks of the encoder.
        layout: how the block cuts the (possibly smaller) grid into attention calls.
        window: the block's own window size, given back when the patch is removed.
        attend: method that plans this block's attention ("merge" or "keys"), or None.
        shrink: method that reduces the token grid before this block, with the windowed layout it reduces by.
        shrunk: this block runs on the smaller grid.
        restore: the grid is restored after this block.
        rank: 2x2 cells are ranked by this block's keys.
        keep: MLP policy that plans by that rank, here.
        mlp: "" dense, "plan" on the tokens of this block's merge plan, "rank" on the kept tokens.
        last: the last patched block.
    """

    index: int
    shared: Shared
    layout: Layout
    window: int
    attend: Any = None
    shrink: tuple[Any, Layout] | None = None
    shrunk: bool = False
    restore: bool = False
    rank: bool = False
    keep: Any = None
    mlp: str = ""
    last: bool = False

    @property
    def reduced(self) -> bool:
        """Whether this block's attention computes less than the stock one."""
        return self.attend is not None or self.shrunk

    @property
    def names(self) -> list[tuple[str, tuple[str, ...]]]:
        """Decisions this block takes: name and parts."""
        made: list[tuple[str, tuple[str, ...]]] = []
        if self.shrink:
            made.append((f"grid.{self.index}", GRID_PARTS))
        if self.attend is not None and self.attend.KIND == "merge":
            split = self.attend.dense_calls(self.layout) > 0
            made.append((f"plan.{self.index}", (("order",) if split else ()) + MERGE_PARTS))
        if self.attend is not None and self.attend.KIND == "keys" and self.attend.needs_rank(self.layout):
            made.append((f"plan.{self.index}", KEY_PARTS))
        if self.keep is not None:
            made.append((f"mlp.{self.index}", KEEP_PARTS))
        return made


def assign(geometry: EncoderGeometry, blocks: Mapping[int, Method], mlp: Any = None) -> dict[int, Role]:
    """Roles of all blocks that change; the others stay stock.

    Raises:
        UsageError: the methods cannot work together or not on this encoder.
    """
    if mlp is not None and mlp.KIND == "plan" and not any(m.KIND == "merge" for m in blocks.values()):
        raise UsageError("--mlp merge needs a method that merges tokens around attention. Pass another --mlp.")
    shared = Shared()
    roles: dict[int, Role] = {}

    def role(index: int) -> Role:
        return roles.setdefault(index, Role(index, shared, geometry.layout(index), geometry.windows[index]))

    ranked_from = 0
    grids = sorted(i for i, m in blocks.items() if m.KIND == "grid")
    if grids:
        ranked_from = _shrink(geometry, blocks, grids, roles, role)
    needs_rank = mlp is not None and mlp.KIND == "rank"
    for index, method in sorted(blocks.items()):
        removes: Any = method
        if method.KIND == "grid" or removes.removed(geometry.layout(index)) == 0:
            continue
        by_plan = mlp is not None and mlp.KIND == "plan" and method.KIND == "merge"
        roles[index] = replace(role(index), attend=method, mlp="plan" if by_plan else "")
        needs_rank |= method.KIND == "keys" and removes.needs_rank(geometry.layout(index))
    if needs_rank:
        ranking = next((i for i in geometry.global_layers if i >= ranked_from), None)
        if ranking is None:
            raise UsageError("Tokens are ranked by the keys of a global attention block, and this encoder has none.")
        users = [i for i, r in roles.items() if r.attend is not None and r.attend.KIND == "keys"]
        ranking = min([ranking, *users]) if users else ranking
        by_rank = mlp if mlp is not None and mlp.KIND == "rank" else None
        roles[ranking] = replace(role(ranking), rank=True, keep=by_rank)
        for index in range(ranking + 1, geometry.depth) if by_rank is not None else ():
            if geometry.windows[index]:
                roles[index] = replace(role(index), mlp="rank")
    if roles:
        end = max(roles)
        roles[end] = replace(roles[end], last=True)
    return roles


def _shrink(
    geometry: EncoderGeometry,
    blocks: Mapping[int, Method],
    grids: list[int],
    roles: dict[int, Role],
    role: Callable[[int], Role],
) -> int:
    """Roles of a method that reduces the grid at its first block; returns that block."""
    first, method = grids[0], blocks[grids[0]]
    if grids != list(range(first, geometry.depth)) or set(blocks.values()) != {method}:
        raise UsageError(
            f"'{method.NAME}' reduces the grid once, for all blocks that follow. Pass --layers {first}-"
            f"{geometry.depth - 1} (one rate) or leave --layers away."
        )
    layout = geometry.windowed_layout
    reducer: Any = method
    if reducer.after(layout).grid == layout.grid:
        return first
    small = reducer.after(layout)
    for index in grids:
        window = small.window if geometry.windows[index] else 0
        roles[index] = replace(role(index), shrunk=True, layout=Layout(small.grid, window))
    roles[first] = replace(roles[first], shrink=(method, layout))
    roles[geometry.depth - 1] = replace(roles[geometry.depth - 1], restore=True)
    return first
