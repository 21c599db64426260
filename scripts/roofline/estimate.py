"""Operations and bytes of the encoder, and the least time a GPU can take for them.

A part takes as long as the slower of its arithmetic and its memory traffic, at a fraction of the GPU's peaks that such
kernels usually reach; parts follow each other. Attention is bound by exponentials, too.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, floor
from typing import NamedTuple

SIDE, WINDOW, HALF = 64, 14, 2  # tokens of a side, of a window's side, bytes of a value
MEMORY, EXPONENTIALS = 0.8, 0.7  # fractions of the peak that kernels reach
EXPONENTIALS_PER_CLOCK = 16  # of one multiprocessor
KERNELS_DENSE, MERGE_OPS, MERGE_LAUNCHES = 10, 15, 4  # of a block; what merging adds as ONNX operators, as plugins


class Model(NamedTuple):
    """An encoder: channels, heads, blocks, of which so many are global, and parameters."""

    channels: int
    heads: int
    blocks: int
    global_blocks: int
    parameters: float


class Gpu(NamedTuple):
    """Peaks: dense FP16 products with FP32 sums, memory, multiprocessors, clock; seconds of a launch without and in a
    CUDA graph; the fractions of the peak that products and attention usually reach.
    """

    flops: float
    bytes: float
    processors: int
    hertz: float
    launch: float
    graph_launch: float
    gemm: float
    attention: float


class Layer(NamedTuple):
    """Tokens that attention sees in a block: windows, tokens of each, rows + columns of a window."""

    windows: int
    tokens: int
    lines: int


MODELS = {
    "vit_b": Model(768, 12, 12, 4, 86e6),
    "vit_l": Model(1024, 16, 24, 4, 304e6),
    "vit_h": Model(1280, 16, 32, 4, 632e6),
}
GPUS = {
    "H100": Gpu(989e12, 3350e9, 132, 1.755e9, 3e-6, 1.3e-6, 0.60, 0.50),
    "4090": Gpu(165e12, 1008e9, 128, 2.52e9, 3e-6, 1.3e-6, 0.75, 0.65),
    "Orin": Gpu(42.6e12, 204.8e9, 16, 1.3e9, 8e-6, 3e-6, 0.65, 0.45),
}
FORMS = ("dense bias", "folded", "plugin")


def layers(rate: float) -> tuple[Layer, Layer]:
    """A global and a windowed block at a rate of merged tokens."""

    def kept(tokens: int) -> int:
        return tokens - 3 * floor(tokens * rate / 3)

    windows = ceil(SIDE / WINDOW) ** 2
    return Layer(1, kept(SIDE * SIDE), 2 * SIDE), Layer(windows, kept(WINDOW * WINDOW), 2 * WINDOW)


def work(model: Model, rate: float) -> dict[str, float]:
    """Operations (flops_*), scores, and bytes (all other keys) of the whole encoder."""
    D, heads, d = model.channels, model.heads, model.channels // model.heads
    N, merging = SIDE * SIDE, rate > 0
    both = tuple(zip((model.global_blocks, model.blocks - model.global_blocks), layers(rate)))
    tokens = sum(blocks * layer.windows * layer.tokens for blocks, layer in both)
    scores = {i: blocks * layer.windows * layer.tokens**2 * heads for i, (blocks, layer) in enumerate(both)}
    padded = {0: 2 * SIDE, 1: 32}  # a window's lines as products take them
    found = {"flops_gemm": 2 * 4 * D * D * tokens + 2 * 8 * D * D * N * model.blocks}
    found["flops_gemm"] += 2 * (N * D * 16 * 16 * 3 + N * D * 256 + N * 256 * 256 * 9)
    for i in (0, 1):
        found |= {f"scores_{i}": scores[i], f"flops_attention_{i}": 4 * scores[i] * d}
        found[f"flops_bias_{i}"] = 2 * scores[i] * padded[i]  # one-hot product, or the folded part of q . k
    found["gemm"] = HALF * (model.parameters + tokens * D * 6 + model.blocks * N * D * 10)
    found["norms"] = HALF * model.blocks * N * D * 10
    found["attention_io"] = HALF * tokens * D * 4
    found["dense_bias"] = HALF * 2 * sum(scores.values())  # written once, read once
    found["folded"] = (
        HALF
        * 4
        * heads
        * sum(blocks * layer.windows * layer.tokens * padded[i] for i, (blocks, layer) in enumerate(both))
    )
    windowed = model.blocks - model.global_blocks
    copies = windowed * (N + layers(0)[1].windows * WINDOW * WINDOW) * D * 2
    found["windows"] = 0.0 if merging else HALF * copies
    every = sum(blocks * layer.windows * full.tokens for (blocks, layer), full in zip(both, layers(0)))
    found["merge"] = HALF * D * (every + 3 * tokens + 2 * N * model.blocks) if merging else 0.0
    found["energy"] = HALF * model.blocks * N * D if merging else 0.0
    return found


def times(model: Model, rate: float, gpu: Gpu) -> dict[str, float]:
    """Seconds of the whole encoder by form of attention, without launches."""
    w = work(model, rate)

    def memory(*names: str) -> float:
        return sum(w[name] for name in names) / (gpu.bytes * MEMORY)

    def attention(i: int, *, product: bool) -> float:
        flops = w[f"flops_attention_{i}"] + product * w[f"flops_bias_{i}"]
        exponentials = w[f"scores_{i}"] / (gpu.processors * gpu.hertz * EXPONENTIALS_PER_CLOCK * EXPONENTIALS)
        return max(flops / (gpu.flops * gpu.attention), exponentials, memory("attention_io") if i else 0.0)

    core = max(w["flops_gemm"] / (gpu.flops * gpu.gemm), memory("gemm")) + memory("norms", "merge", "energy")
    floor_, product = (attention(0, product=p) + attention(1, product=p) for p in (False, True))
    # Aligned lines of a dense grid come nearly free; everything else takes a product.
    ours = attention(0, product=rate > 0) + attention(1, product=True)
    return {
        "products": max(w["flops_gemm"] / (gpu.flops * gpu.gemm), memory("gemm")),
        "no bias": core + floor_,
        "dense bias": core + floor_ + memory("dense_bias", "windows"),
        "folded": core + product + memory("folded", "windows"),
        "plugin": core + ours,
    }


def launches(model: Model, gpu: Gpu, added: int) -> tuple[float, float]:
    """Seconds that so many more launches a block cost, in a CUDA graph and without."""
    return model.blocks * added * gpu.graph_launch, model.blocks * added * gpu.launch


def page(model: Model, rate: float, gpus: Sequence[str]) -> str:
    """Both tables, in milliseconds."""
    lines = ["Estimates in ms, batch 1, FP16; not measured on GPU.", ""]
    lines += ["| | " + " | ".join(gpus) + " |", "|---" * (len(gpus) + 1) + "|"]

    def row(title: str, values: Sequence[str]) -> None:
        lines.append(f"| {title} | " + " | ".join(values) + " |")

    def ms(seconds: float) -> str:
        return f"{seconds * 1e3:.2f}"

    for title, kept in (("dense", 0.0), (f"merged {rate:g}", rate)):
        for form in (*FORMS, "no bias", "products"):
            row(f"{title}: {form}", [ms(times(model, kept, GPUS[gpu])[form]) for gpu in gpus])
    for title, added in (("operators", MERGE_OPS), ("plugins", MERGE_LAUNCHES)):
        costs = [launches(model, GPUS[gpu], added) for gpu in gpus]
        row(f"launches that merging adds as {title}: CUDA graph / none", [f"{ms(g)} / {ms(n)}" for g, n in costs])
    gain = [(times(model, 0.0, GPUS[gpu]), times(model, rate, GPUS[gpu])) for gpu in gpus]
    row("plugin attention gains, dense", [f"{a['dense bias'] / a['plugin']:.2f}x" for a, _ in gain])
    row("merging gains on top", [f"{a['plugin'] / b['plugin']:.2f}x" for a, b in gain])
    return "\n".join(lines)
