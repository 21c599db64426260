"""Multiply-adds of DeiT with the methods that papers report on, beside the figures there are (docs/timm.md).

python scripts/timm_macs prints a Markdown table. "As published" merges block after block and never brings tokens back
(ToMe); "here" is what this package exports.
"""

from __future__ import annotations

import argparse

from structsam_export.config import ExportConfig
from structsam_export.geometry import EncoderGeometry
from structsam_export.macs import paper_macs, scheduled_macs
from structsam_export.schedule import resolve

# GFLOPs that ToMe's authors give for DeiT-S, by tokens removed in each block (arXiv 2210.09461).
TOME_DEIT_S = {8: 3.4, 13: 2.7, 16: 2.3}
DENSE = {"DeiT-S": 4.6, "DeiT-B": 17.6}


def deit(dim: int, heads: int) -> EncoderGeometry:
    """DeiT at 224 px with a classifier of 1000."""
    other = 196 * dim * 768 + 5 * 197 * dim + dim * 1000
    return EncoderGeometry(
        224, 16, (14, 14), dim, 12, heads, 4 * dim, dim, (0,) * 12, other_macs=other, prefix=1, positions=False
    )


MODELS = {"DeiT-S": deit(384, 6), "DeiT-B": deit(768, 12)}


def tome_as_published(g: EncoderGeometry, removed: int) -> int:
    """ToMe's own placing: attention of a block on N tokens, then `removed` of them merge, then its MLP."""
    total, tokens = float(g.other_macs or 0), g.tokens_global + g.prefix
    for _ in range(g.depth):
        total += 4 * tokens * g.dim**2 + 2 * tokens**2 * g.dim + 5 * tokens * g.dim
        tokens -= min(removed, tokens // 2)
        total += 2 * tokens * g.dim * g.mlp_dim + 5 * tokens * g.dim
    return round(total)


def here(g: EncoderGeometry, method: str, rate: float, **options: str) -> int:
    """What an export with these options costs, as the papers count."""
    return scheduled_macs(g, resolve(ExportConfig(method=method, rate=rate, **options), g))


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(prog="python scripts/timm_macs", description=__doc__).parse_args()
    print("| model | what | GMACs | published |\n|---|---|--:|--:|")
    for name, g in MODELS.items():
        print(f"| {name} | unmerged | {paper_macs(g) / 1e9:.2f} | {DENSE[name]} |")
        for removed in (6, 8, 9, 13, 16):
            known = TOME_DEIT_S.get(removed, "-") if name == "DeiT-S" else "-"
            print(f"| {name} | ToMe r={removed}, as published | {tome_as_published(g, removed) / 1e9:.2f} | {known} |")
        for rate in (0.3, 0.5):
            for mlp in ("none", "merge"):
                found = here(g, "tome", rate, mlp=mlp) / 1e9
                print(f"| {name} | here: --method tome --rate {rate} --mlp {mlp} | {found:.2f} | - |")
        for removed in (1, 2, 3):
            rate = 1 - (14 - removed) ** 2 / 196
            found = here(g, "cubist", rate, layers="1-11") / 1e9
            print(f"| {name} | CubistMerge r={removed} from block 1: --rate {rate:.3f} | {found:.2f} | - |")


if __name__ == "__main__":
    main()
