"""The table of methods that the command `methods` prints and the README carries."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from structsam_export.geometry import GEOMETRIES
from structsam_export.macs import paper_macs, scheduled_macs
from structsam_export.methods import METHODS, PROMPT_AWARE, load, method_class

COLUMNS = ("method", "variants (largest rate)", "MACs saved at 0.5", "protects", "source")


def catalogue() -> list[dict[str, Any]]:
    """Every method: name, variants with their largest rates, MACs saved on ViT-B at rate 0.5, what it protects, source.

    `macs_saved` is the share of ViT-B's encoder MACs that each variant saves, all layers (cubist: from a quarter of
    the depth on), counted as the papers count.
    """
    from structsam_export.config import ExportConfig
    from structsam_export.schedule import resolve

    geometry = GEOMETRIES["vit_b"]
    dense = paper_macs(geometry)
    rows = []
    for name in METHODS:
        cls = method_class(name)
        saved = {}
        for variant, most in cls.VARIANTS.items():
            schedule = resolve(ExportConfig(method=name, variant=variant, rate=min(0.5, most)), geometry)
            saved[variant] = round(1 - scheduled_macs(geometry, schedule) / dense, 4)
        rows.append(
            {
                "name": name,
                "variants": dict(cls.VARIANTS),
                "macs_saved": saved,
                "protects": cls.PROTECTS,
                "source": cls.SOURCE,
                "parameters": {key: list(limits) for key, limits in cls.PARAMS.items()},
                "compat": list(cls.COMPAT),
                "prompt_aware": load(PROMPT_AWARE[name]).PROTECTS if name in PROMPT_AWARE else None,
            }
        )
    return rows


def table_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The catalogue as text, one row for each method."""
    return [
        (
            row["name"],
            ", ".join(f"{variant} ({most:g})" for variant, most in row["variants"].items()),
            ", ".join(dict.fromkeys(f"{100 * share:.1f} %" for share in row["macs_saved"].values())),
            row["protects"],
            row["source"],
        )
        for row in rows
    ]


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The catalogue as a Markdown table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    lines += [(f"`{name}`", *rest) for name, *rest in table_rows(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
