"""The table of methods that the command `methods` prints and the README carries."""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from typing import Any

from structsam_export.geometry import GEOMETRIES
from structsam_export.hosts import HOSTS
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


# Methods whose own papers report on a host; elsewhere they are ours to carry over. StructSAM's second version adds
# EfficientSAM (arXiv 2603.07307v2, by others' notes); SparseSAM has SAM and SAM-HQ, GradToMe and CubistMerge SAM.
REPORTED = {
    "EfficientSamViT": ("none", "structsam"),
    "ImageEncoderViT": ("none", "structsam", "gradtome", "sparsesam", "cubist"),
    "HQImageEncoder": ("none", "sparsesam"),
    # CubistMerge reports on DeiT and DINOv3, ToMe and PiToMe on DeiT, but merging block after block (docs/timm.md).
    "TimmBackbone": ("none", "cubist"),
    "TimmClassifier": ("none", "cubist"),
    "TinyViT": ("none",),
}


def by_host() -> list[dict[str, Any]]:
    """Every method on every host: `state` is "supported" (its paper reports on this host), "ours" (carried over by
    us, or one that a paper compares itself with) or "refused"; then `why` is the host's reason.
    """
    rows = []
    for key, place in HOSTS.items():
        module, symbol = place.split(":")
        host = getattr(import_module(module), symbol)()
        for name in METHODS:
            why = None if name == "none" else host.refusal(name)
            state = "refused" if why else "supported" if name in REPORTED.get(key, ()) else "ours"
            rows.append({"host": key, "family": place.rpartition(":")[2], "method": name, "state": state, "why": why})
    return rows


def host_table(rows: Sequence[dict[str, Any]]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """`by_host` as a table: its columns, and one row for each method."""
    hosts = list(dict.fromkeys(row["family"] for row in rows))
    states = {(row["method"], row["family"]): row["state"] for row in rows}
    methods = dict.fromkeys(row["method"] for row in rows)
    return ("method", *hosts), [(name, *(states[name, host] for host in hosts)) for name in methods]


def refusals(rows: Sequence[dict[str, Any]]) -> list[str]:
    """Why methods are refused, one line for each host and reason."""
    return list(dict.fromkeys(f"{row['family']}: {row['why']}" for row in rows if row["why"]))


def table_rows(rows: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """The catalogue as text, one row for each method."""
    return [
        (
            row["name"],
            ", ".join(f"{variant} ({most:g})" for variant, most in row["variants"].items()),
            one_or_all([f"{100 * share:.1f} %" for share in row["macs_saved"].values()]),
            row["protects"],
            row["source"],
        )
        for row in rows
    ]


def one_or_all(figures: Sequence[str]) -> str:
    """The figure that all variants share, or each variant's in order."""
    return figures[0] if len(set(figures)) == 1 else ", ".join(figures)


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """The catalogue as a Markdown table."""
    lines = [COLUMNS, ("---",) * len(COLUMNS)]
    lines += [(f"`{name}`", *rest) for name, *rest in table_rows(rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
