"""Kernels of plugins/ on the GPU: equal to their references there, and timed beside what they would replace.

A dry run does it all but the timing, with small shapes, in Triton's interpreter on the CPU.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpu_suite import NOT_MEASURED

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

PLUGINS = Path(__file__).parents[2] / "plugins"
# Largest error, relative to the largest value of the reference in float64.
TOLERANCE = {"float32": 1e-5, "float16": 2e-3, "bfloat16": 1.6e-2}
# Attention that is timed: windows, tokens, heads, channels of a head, window, form of the bias.
ATTENTION = {
    "global merged": (1, 2050, 12, 64, (64, 64), "one_hot"),
    "global merged by gather": (1, 2050, 12, 64, (64, 64), "gather"),
    "global dense": (1, 4096, 12, 64, (64, 64), "aligned"),
    "window merged": (25, 100, 12, 64, (14, 14), "one_hot"),
    "window dense": (25, 196, 12, 64, (14, 14), "aligned"),
    "ViT-H global merged": (1, 2050, 16, 80, (64, 64), "one_hot"),
    "ViT-H global dense": (1, 4096, 16, 80, (64, 64), "aligned"),
}
DRY_ATTENTION = (1, 20, 2, 16, (5, 5), "one_hot")
# The plan of a layer that is timed: grid, window, merged cells, channels, heads.
LAYERS = {"global": ((64, 64), (64, 64), 682, 768, 12), "window": ((64, 64), (14, 14), 32, 768, 12)}
DRY_LAYER = ((6, 6), (4, 4), 1, 12, 2)


def triton_part(name: str, file: str) -> Any:
    """A module of a plugin; without a GPU its kernels are interpreted, which Triton decides when it is imported."""
    import torch

    if file == "kernel" and not torch.cuda.is_available():
        os.environ["TRITON_INTERPRET"] = "1"
    if str(PLUGINS) not in sys.path:
        sys.path.append(str(PLUGINS))
    from kernel_launch import part

    return part(name, file)


def device() -> str:
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def error(found: Tensor, want: np.ndarray) -> float:
    """Largest error relative to the largest value of `want`; infinite if anything is not finite."""
    import numpy as np

    difference = np.abs(found.double().cpu().numpy() - want).max()
    return float(difference / np.abs(want).max()) if np.isfinite(difference) else float("inf")


def checked(errors: dict[str, float], precision: str) -> dict[str, Any]:
    """The errors as a result.

    Raises:
        ValueError: one is too large.
    """
    limit = TOLERANCE[precision]
    if wrong := {name: e for name, e in errors.items() if not e <= limit}:
        raise ValueError(f"differs from the reference: {wrong}, more than {limit}")
    return {"max_rel": errors, "tolerance": limit, "device": device()}


def attention(options: dict[str, Any], case: str, precision: str) -> dict[str, Any]:
    """Equality of one attention, and its time beside a dense bias, folded queries and keys, no bias and FlexAttention.

    Args:
        options: of the suite.
        case: one of ATTENTION; a dry run takes a small one.
        precision: "float32", "float16" or "bfloat16".

    Raises:
        ValueError: the kernel differs from its reference in float64.
    """
    import torch

    kind, where = getattr(torch, precision), device()
    B, n, heads, d, window, mode = DRY_ATTENTION if options["dry_run"] else ATTENTION[case]
    (h, w), g = window, torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(B, n, heads * d, generator=g).to(where, kind) for _ in range(3))
    q = q * d**-0.5
    rel = torch.randn(B, n, heads, 2 * h + 2 * w - 2, generator=g).to(where, kind)
    places = [torch.arange(n) if mode == "aligned" else torch.randperm(h * w, generator=g)[:n] for _ in range(B)]
    pos = torch.stack(places).to(where, torch.int32)
    out = torch.empty_like(q)
    launch = triton_part("relpos_attention", "kernel").launch(B, n, heads, d, window, precision, mode)
    launch.run(q, k, v, rel, pos, out)
    # Scores of all heads in float64 would take gigabytes: the first and the last head stand for all.
    some = sorted({0, heads - 1})

    def picked(x: Tensor) -> Tensor:
        return x.view(B, n, heads, -1)[:, :, some].flatten(2)

    values = [picked(x).float().cpu().numpy() for x in (q, k, v, rel)]
    values[3] = values[3].reshape(B, n, len(some), -1)
    want = triton_part("relpos_attention", "reference").reference(*values, pos.cpu().numpy(), len(some), window)
    found = checked({"relpos_attention": error(picked(out), want)}, precision)
    others = rivals(q, k, v, rel, pos, heads, window)
    # FlexAttention is compiled when it is timed.
    found["rivals_max_rel"] = {
        name: error(picked(call()), want)
        for name, call in others.items()
        if name != "SDPA without bias" and "Flex" not in name
    }
    if options["dry_run"]:
        return {**found, "times": NOT_MEASURED}
    if precision != "float16":
        others = {}
    calls = {"kernel": lambda: launch.run(q, k, v, rel, pos, out), **others}
    return {**found, "times": {name: timed(call, options["runs"]) for name, call in calls.items()}}


def rivals(
    q: Tensor, k: Tensor, v: Tensor, rel: Tensor, pos: Tensor, heads: int, window: tuple[int, int]
) -> dict[str, Callable[[], Tensor]]:
    """Other ways to the same attention, each from the kernel's own inputs to its output."""
    import torch
    import torch.nn.functional as F

    (B, n, _), (h, w) = q.shape, window
    row, column = pos.long() // w, pos.long() % w

    def split(x: Tensor) -> Tensor:
        return x.view(B, n, heads, -1).transpose(1, 2)

    def joined(y: Tensor) -> Tensor:
        return y.transpose(1, 2).reshape(B, n, -1)

    def along(products: Tensor, line: Tensor, lines: int) -> Tensor:
        """Products of a query with every line, (B, heads, n, lines), from those with every offset."""
        at = lines - 1 + line[:, :, None] - torch.arange(lines, device=q.device)
        return products.transpose(1, 2).gather(3, at[:, None].expand(-1, heads, -1, -1))

    def bias() -> tuple[Tensor, Tensor]:
        return along(rel[..., : 2 * h - 1], row, h), along(rel[..., 2 * h - 1 :], column, w)

    def dense() -> Tensor:
        by_row, by_column = bias()
        full = [
            x.gather(3, line[:, None, None].expand(-1, heads, n, -1))
            for x, line in ((by_row, row), (by_column, column))
        ]
        return joined(F.scaled_dot_product_attention(*map(split, (q, k, v)), attn_mask=full[0] + full[1], scale=1.0))

    def folded() -> Tensor:
        onehot = torch.cat([F.one_hot(row, h), F.one_hot(column, w)], -1)[:, None].expand(-1, heads, -1, -1)
        left = torch.cat([split(q), *bias()], -1)
        right = torch.cat([split(k), onehot.to(k.dtype)], -1)
        return joined(F.scaled_dot_product_attention(left, right, split(v), scale=1.0))

    def plain() -> Tensor:
        return joined(F.scaled_dot_product_attention(*map(split, (q, k, v)), scale=1.0))

    def flex() -> Tensor:
        by_row, by_column = bias()

        def scored(score: Tensor, b: Tensor, head: Tensor, i: Tensor, j: Tensor) -> Tensor:
            return score + by_row[b, head, i, row[b, j]] + by_column[b, head, i, column[b, j]]

        return joined(flex_attention()(*map(split, (q, k, v)), score_mod=scored, scale=1.0))

    return {"dense bias": dense, "SDPA folded": folded, "SDPA without bias": plain, "FlexAttention": flex}


def flex_attention() -> Any:
    """FlexAttention, compiled."""
    import torch
    from torch.nn.attention.flex_attention import flex_attention as flex

    return torch.compile(flex, dynamic=False)


def timed(call: Callable[[], Any], runs: int) -> dict[str, Any]:
    """p50, p90, p99 in ms of `runs` runs by CUDA events, after a warm-up; or why there are none."""
    import torch

    from gpu_suite.package import percentiles

    try:
        for _ in range(10):
            call()
        torch.cuda.synchronize()
        seconds = []
        for _ in range(runs):
            start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
            start.record()
            call()
            end.record()
            torch.cuda.synchronize()
            seconds.append(start.elapsed_time(end) / 1e3)
    except Exception as failure:  # a rival that does not run here must not hide the kernel's own figure
        return {"failed": f"{type(failure).__name__}: {str(failure)[:200]}"}
    return dict(percentiles(seconds))


def merging(options: dict[str, Any], layer: str, precision: str) -> dict[str, Any]:
    """Equality of the four kernels of merging on one kind of layer, the plan's exactly; their times and launches.

    Args:
        options: of the suite.
        layer: one of LAYERS; a dry run takes a small one.
        precision: of tokens; "float32", "float16" or "bfloat16".

    Raises:
        ValueError: a kernel differs from its reference.
    """
    import torch

    kind, where = getattr(torch, precision), device()
    shape, window, merged, D, heads = DRY_LAYER if options["dry_run"] else LAYERS[layer]
    y = torch.randn(1, *shape, D, generator=torch.Generator().manual_seed(0)).to(where, kind)
    runs = {"token_energy": triton_part("token_energy", "kernel").launch(1, shape, heads, D // heads, precision)}
    runs["merge_plan"] = triton_part("merge_plan", "kernel").launch(1, shape, window, merged)
    for name in ("token_merge", "token_unmerge"):
        runs[name] = triton_part(name, "kernel").launch(1, shape, window, merged, D, precision)
    calls, N = runs["merge_plan"].grid[1], window[0] * window[1]
    energy = torch.empty(1, *shape, device=where)
    pos, slot = (torch.empty(calls, m, dtype=torch.int32, device=where) for m in (N - 3 * merged, N))
    slots, out = torch.empty(calls, N - 3 * merged, D, dtype=kind, device=where), torch.empty_like(y)
    tensors = {"token_energy": (y, energy), "merge_plan": (energy, pos, slot)}
    tensors |= {"token_merge": (y, pos, slots), "token_unmerge": (slots, slot, y, out)}
    for name, launch in runs.items():
        launch.run(*tensors[name])
    want = triton_part("merge_plan", "reference").reference(energy.cpu().numpy(), window, merged)
    if not all((found.cpu().numpy() == right).all() for found, right in zip((pos, slot), want)):
        raise ValueError("merge_plan differs from its reference")
    tokens, kept = y.float().cpu().numpy(), slots.float().cpu().numpy()
    errors = {
        "token_energy": error(energy, triton_part("token_energy", "reference").reference(tokens, heads)),
        "token_merge": error(slots, triton_part("token_merge", "reference").reference(tokens, want[0], window, merged)),
        "token_unmerge": error(out, triton_part("token_unmerge", "reference").reference(kept, want[1], tokens, window)),
    }
    found = {**checked(errors, precision), "merge_plan": "exactly equal"}
    if options["dry_run"]:
        return {**found, "times": NOT_MEASURED, "launches": NOT_MEASURED}

    def chain() -> None:
        for name, launch in runs.items():
            launch.run(*tensors[name])

    each = {name: timed(lambda name=name: runs[name].run(*tensors[name]), options["runs"]) for name in runs}
    return {**found, "times": {**each, "all four": timed(chain, options["runs"])}, "launches": launches_of(chain)}


def launches_of(call: Callable[[], None]) -> int:
    """Kernels that the profiler sees on the GPU."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA, ProfilerActivity.CPU]) as profiler:
        call()
        torch.cuda.synchronize()
    return sum("CUDA" in str(event.device_type) and "Mem" not in event.name for event in profiler.events())
