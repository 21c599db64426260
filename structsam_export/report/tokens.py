"""Token counts of a schedule, and what a prompt's tokens had to suffer."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from structsam_export.models.geometry import EncoderGeometry
    from structsam_export.patch.roles import Role
    from structsam_export.schedule import Schedule
    from structsam_export.validate.stages import Reference


def token_counts(geometry: EncoderGeometry, schedule: Schedule) -> dict[str, Any]:
    """N and n of one attention call in global and in windowed blocks (the first of each kind that is patched).

    `effective_rate` is the share of tokens, or of keys where tokens stay, that really goes; `keys` is what a query
    attends to. A grid that shrinks has fewer tokens in every block that follows.
    """
    from structsam_export.patch.roles import assign

    roles = assign(geometry, schedule.blocks, schedule.mlp)
    counts: dict[str, Any] = {}
    for kind in ("global", "window"):
        of_kind = [i for i, w in enumerate(geometry.windows) if (w == 0) == (kind == "global")]
        if not of_kind:
            counts[kind] = None
            continue
        chosen = next((i for i in of_kind if i in roles and roles[i].reduced), of_kind[0])
        counts[kind] = layer_counts(geometry, chosen, roles.get(chosen))
    return counts


def layer_counts(geometry: EncoderGeometry, layer: int, role: Role | None) -> dict[str, Any]:
    """Token counts of one block."""
    N = geometry.layout(layer).tokens
    row: dict[str, Any] = {"N": N, "n": N, "effective_rate": 0.0}
    if role is None or not role.reduced:
        return row
    if role.shrunk:
        grid = role.layout.grid
        row |= {"n": role.layout.tokens, "grid": list(grid)}
        row["effective_rate"] = round(1 - grid[0] * grid[1] / geometry.tokens_global, 6)
    elif role.attend.KIND == "keys":
        row |= {"keys": role.attend.kept_keys(role.layout)}
        row["effective_rate"] = round(1 - row["keys"] / N, 6)
    else:
        groups = role.attend.groups(role.layout)
        row["n"] = groups[-1][1]
        if len(groups) > 1:
            row["calls"] = [{"calls": calls, "n": n} for calls, n in groups]
        kept = sum(calls * n for calls, n in groups)
        row["effective_rate"] = round(1 - kept / (role.layout.calls * N), 6)
    return row


def prompt_report(found: Validation, geometry: EncoderGeometry) -> dict[str, Any]:
    """Per photo: tokens of the prompt's region, and how many of them had to merge, by block.

    None should; some must where the region is larger than what the rate leaves.
    """
    from structsam_export.methods.tokens import Layout
    from structsam_export.validate.decisions import decided, merged_tokens

    rows = {}
    for photo, decisions, outputs in zip(found.photos, found.decisions, found.stages["eager"].outputs):
        regions = {name: d.inputs[1] for name, d in decisions.items() if len(d.inputs) > 1}
        touched, size = {}, 0
        for name, region in regions.items():
            layout = Layout(geometry.grid, geometry.windows[int(name.split(".")[1])])
            inside = layout.partition(region.unsqueeze(-1)).squeeze(-1).numpy() > 0
            size = int(inside.sum())
            touched[name.split(".")[1]] = int((merged_tokens(decided(outputs, name)) & inside).sum())
        rows[photo.name] = {"region_tokens": size, "merged": touched}
    return rows

