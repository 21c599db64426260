"""What a report says of tokens: how many there are in each kind of block, and what became of those of a prompt."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from structsam_export.validate.decisions import decided, merged_tokens

if TYPE_CHECKING:
    from structsam_export.geometry import EncoderGeometry
    from structsam_export.roles import Role
    from structsam_export.schedule import Schedule
    from structsam_export.validate.stages import Reference


def token_counts(geometry: EncoderGeometry, schedule: Schedule) -> dict[str, Any]:
    """Tokens of one window before and after, for "global" and "window" blocks (the first of each that is patched).

    `effective_rate` is the share of tokens, or of keys where tokens stay, that really goes; `keys` is what a query
    attends to. A grid that shrinks has fewer tokens in every block that follows. None for blocks there are none of.
    """
    counts: dict[str, Any] = {}
    for kind in ("global", "window"):
        of_kind = [i for i, w in enumerate(geometry.windows) if (w == 0) == (kind == "global")]
        if not of_kind:
            counts[kind] = None
            continue
        roles = schedule.roles
        chosen = next((i for i in of_kind if i in roles and roles[i].reduced), of_kind[0])
        counts[kind] = layer_counts(geometry, chosen, roles.get(chosen))
    return counts


def layer_counts(geometry: EncoderGeometry, layer: int, role: Role | None) -> dict[str, Any]:
    """Token counts of one block: at least `N`, `n` and `effective_rate`."""
    stock = geometry.window_grid(layer)
    if role is None or role.method is None:
        return {"N": stock.tokens, "n": stock.tokens, "effective_rate": 0.0}
    return role.method.token_counts(role.grid, stock)


def prompt_report(reference: Reference, geometry: EncoderGeometry) -> dict[str, Any]:
    """Per photo: tokens of the prompt's region, and how many of them had to merge, by block.

    None should; some must where the region is larger than what the rate leaves.
    """
    rows = {}
    for photo, decisions, outputs in zip(reference.inputs.photos, reference.decisions, reference.eager.outputs):
        touched, size = {}, 0
        for name, decision in decisions.items():
            if len(decision.inputs) < 2:  # taken without a prompt
                continue
            block, region = name.split(".")[1], decision.inputs[1]
            grid = geometry.window_grid(int(block))
            inside = grid.partition(region.unsqueeze(-1)).squeeze(-1).numpy() > 0
            size = int(inside.sum())
            touched[block] = int((merged_tokens(decided(outputs, name, type(decision.plan))) & inside).sum())
        rows[photo.name] = {"region_tokens": size, "merged": touched}
    return rows
