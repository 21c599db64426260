"""`--mlp`: one policy for all blocks it can go to, or policies by layers ("merge:0-3,residual-consistency:4-7")."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from structsam_export.errors import UsageError, shortened
from structsam_export.methods.mlp import make_mlp

if TYPE_CHECKING:
    from structsam_export.geometry import EncoderGeometry
    from structsam_export.roles import MLPPolicy, Role

Named = tuple[tuple[str, str | None], ...]


def parse_mlp(text: str) -> Named:
    """Read `--mlp`.

    Args:
        text: a policy's name, or "NAME:LAYERS,NAME:LAYERS,..." where LAYERS is a list such as 0-5 or 0,2,7 (or a
            preset of `--layers`).

    Returns:
        (name, layers as text) of each part in the order given; layers None: wherever the policy can go.

    Raises:
        UsageError: layers without a policy, or a policy twice.
    """
    if ":" not in text:
        return ((text.strip(), None),)
    parts: list[tuple[str, list[str]]] = []
    for part in text.split(","):
        name, colon, layers = part.partition(":")
        if colon:
            parts.append((name.strip(), [layers.strip()]))
        elif parts:
            parts[-1][1].append(part.strip())
        else:
            raise UsageError(
                f"Cannot read --mlp '{shortened(text)}'. Pass a policy, or policies by layers "
                "(merge:0-3,residual-consistency:4-7)."
            )
    names = [name for name, _ in parts]
    if doubled := next((name for name in names if names.count(name) > 1), None):
        raise UsageError(f"--mlp {shortened(text)} names {doubled} twice. List all its layers once.")
    return tuple((name, ",".join(layers)) for name, layers in parts)


def make_policies(text: str, density: float | None = None) -> tuple[tuple[MLPPolicy | None, str | None], ...]:
    """The policies of a `--mlp`, each with its layers as text; see `parse_mlp`. A density is residual-consistency's.

    Raises:
        UsageError: see `parse_mlp` and `make_mlp`.
    """
    named = parse_mlp(text)
    takes = [name for name, _ in named if name == "residual-consistency"] or [named[0][0]]
    return tuple((make_mlp(name, density if name == takes[0] else None), layers) for name, layers in named)


@dataclass(frozen=True)
class PoliciesByBlock:
    """Several MLP policies in one encoder, each in blocks of its own.

    A policy goes to those of its blocks that it can go to, as it does when no layers are named: merged MLPs to blocks
    that merge, residual consistency to windowed blocks behind the first global one.

    Args:
        parts: (policy, its blocks).
    """

    parts: tuple[tuple[MLPPolicy, frozenset[int]], ...]

    @property
    def density(self) -> float | None:
        """Share of tokens through the MLP where a policy has one."""
        return next((p.density for p, _ in self.parts if hasattr(p, "density")), None)

    def check(self, methods: Iterable[Any]) -> None:
        """Refuse what any of the policies refuses."""
        methods = list(methods)
        for policy, _ in self.parts:
            policy.check(methods)

    def extend(self, roles: dict[int, Role], geometry: EncoderGeometry) -> dict[int, Role]:
        """Each policy in its own blocks.

        Raises:
            UsageError: a policy that can go to none of the blocks named for it.
        """
        for policy, layers in self.parts:
            whole = policy.extend(roles, geometry)
            reached = {i for i, role in whole.items() if role.mlp is policy}
            if not reached & layers:
                where = ", ".join(map(str, sorted(reached))) or "none"
                raise UsageError(
                    f"--mlp: {type(policy).__name__} has no effect in blocks {', '.join(map(str, sorted(layers)))} "
                    f"(here it can go to: {where}). Name other layers."
                )
            kept = {}
            for i, role in whole.items():
                if i in reached - layers:
                    if i not in roles:
                        continue
                    role = replace(role, mlp=roles[i].mlp)
                kept[i] = role
            roles = kept
        return roles
