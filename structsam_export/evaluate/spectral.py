"""What merging does to the spectrum of the token graph, by method at equal rate.

The tokens of one window (the whole grid in global blocks) are the nodes of a graph; the weight of an edge is the
cosine distance 1 - cos of the features that methods match by (PiToMe, arXiv 2405.16148, section on spectrum-preserving
merging). A plan coarsens the graph: nodes that share a slot become one, weights add up. Coarse and original graph have
different sizes, so the coarse one is lifted: each weight is spread evenly over the pairs it came from (Loukas 2019,
JMLR 20; Jin, Loukas and JaJa 2020, arXiv 1802.04447). The spectral distance is the sum of absolute differences between
the sorted eigenvalues of both normalised Laplacians; it is 0 if merged tokens have equal edges, as equal tokens do.

Every method plans on the features of the unpatched model, so that all coarsen the same graphs.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam_export.console import stop_if_interrupted
from structsam_export.errors import UsageError

if TYPE_CHECKING:
    from structsam_export.job import Job
    from structsam_export.methods.base import MergeMethod
    from structsam_export.models import LoadedModel
    from structsam_export.tokens import WindowGrid

# Tokens of one window: eigenvalues cost their number cubed, 4096 take a minute each.
LARGEST = 1024
IMAGES = 4  # by default


def token_graph(features: np.ndarray) -> np.ndarray:
    """Weights of the graph of tokens (N, d): float64 (N, N), 1 - cos, at least 0, and 0 on the diagonal."""
    x = features.astype(np.float64)
    x = x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
    weights: np.ndarray = np.maximum(1 - x @ x.T, 0)
    np.fill_diagonal(weights, 0)
    return weights


def spectrum(weights: np.ndarray) -> np.ndarray:
    """Eigenvalues (N,) of the normalised Laplacian I - D^-1/2 W D^-1/2, ascending; weights may have a diagonal."""
    degree = weights.sum(1)
    root = np.where(degree > 0, 1 / np.sqrt(np.maximum(degree, 1e-300)), 0)
    values: np.ndarray = np.linalg.eigvalsh(np.eye(len(weights)) - root[:, None] * weights * root)
    return values


def coarsened(weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """The graph of groups: weights (n, n) added up, those within a group on the diagonal. `groups` int (N,)."""
    member = (groups[None, :] == np.unique(groups)[:, None]).astype(np.float64)
    return np.asarray(member @ weights @ member.T)


def lifted_spectrum(weights: np.ndarray, groups: np.ndarray) -> np.ndarray:
    """Eigenvalues (N,) of the coarsened graph lifted back to N nodes, ascending.

    They are those of the coarse graph, and 1 for every node that was merged away (Jin et al. 2020, section 4), so that
    only n x n matrices are decomposed.
    """
    coarse = spectrum(coarsened(weights, groups))
    return np.sort(np.concatenate([coarse, np.ones(len(weights) - len(coarse))]))


def spectral_distance(weights: np.ndarray, groups: np.ndarray, original: np.ndarray | None = None) -> float:
    """Sum of |lambda_i - lambda_i of the lifted graph| (Jin et al. 2020, definition of the full spectral distance).

    Args:
        weights: float64 (N, N), symmetric, not negative.
        groups: int (N,), equal where nodes are merged.
        original: `spectrum(weights)`, if it is known.
    """
    before = spectrum(weights) if original is None else original
    return float(np.abs(before - lifted_spectrum(weights, groups)).sum())


def methods_at(job: Job) -> dict[str, MergeMethod]:
    """The job's method and, at its rate and in their default variants, all others that merge and go so far.

    Raises:
        UsageError: the job's method does not merge by one plan for all windows, or has several rates.
    """
    from structsam_export.methods import METHODS, make_method, method_class
    from structsam_export.methods.base import MergeMethod

    own, rate = job.schedule.method, job.schedule.rate
    merging = {name: cls for name in METHODS if issubclass(cls := method_class(name), MergeMethod)}
    if not isinstance(own, MergeMethod) or job.schedule.prompt_aware:
        known = ", ".join(merging)
        raise UsageError(f"--spectral compares methods that merge tokens, without a prompt. They are: {known}.")
    if rate is None:
        raise UsageError("--spectral compares methods at one rate. Pass --rate as a number.")
    found: dict[str, Any] = {job.label: own}
    for name, cls in merging.items():
        variant, most = next(iter(cls.VARIANTS.items()))
        if rate <= most and (name, variant) != (own.NAME, own.variant):
            found[f"{name}-{variant}"] = make_method(name, rate)
    return found


def compare(
    loaded: LoadedModel,
    methods: Mapping[str, MergeMethod],
    layers: Sequence[int],
    images: Sequence[np.ndarray],
    say: Callable[[str], None] = lambda _: None,
) -> list[dict[str, Any]]:
    """Spectral distances of every method, on the same graphs.

    Args:
        loaded: the unpatched model.
        methods: by name.
        layers: blocks to look at; those with windows of more than `LARGEST` tokens are left out.
        images: uint8 (h, w, 3).
        say: told how far it is.

    Returns:
        One row a method: `name`, `kept` (share of the real tokens), `window` and `global` (mean distance of a
        window, None without such blocks), `blocks` (the same by block).
    """
    distances: dict[str, dict[int, list[float]]] = {name: {} for name in methods}
    kept: dict[str, list[float]] = {name: [] for name in methods}
    geometry = loaded.geometry
    chosen = [i for i in layers if geometry.window_grid(i).tokens <= LARGEST]
    for number, image in enumerate(images):
        features = block_features(loaded, image)
        for layer in chosen:
            say(f"{number + 1}/{len(images)}, block {layer}")
            stop_if_interrupted()
            for name, found, share in one_block(features[layer], geometry.window_grid(layer), methods):
                distances[name].setdefault(layer, []).append(found)
                kept[name].append(share)
    return [row_of(name, distances[name], kept[name], geometry.windows) for name in methods]


def row_of(name: str, distances: dict[int, list[float]], kept: list[float], windows: Sequence[int]) -> dict[str, Any]:
    """Means of one method."""

    def mean(windowed: bool) -> float | None:
        values = [v for layer, found in distances.items() if (windows[layer] > 0) == windowed for v in found]
        return float(np.mean(values)) if values else None

    blocks = {str(layer): float(np.mean(found)) for layer, found in distances.items()}
    share = float(np.mean(kept)) if kept else None
    return {"name": name, "kept": share, "window": mean(True), "global": mean(False), "blocks": blocks}


def block_features(loaded: LoadedModel, image: np.ndarray) -> dict[int, Any]:
    """What the methods see in every block of the unpatched model: tensors (1, H, W, d), by block."""
    import torch

    from structsam_export.patch import observed
    from structsam_export.runtime.images import prepare

    ready = prepare(image, loaded.geometry.image_size, loaded.spec.preprocessing)
    encoder = loaded.sam.image_encoder
    with torch.no_grad(), observed(encoder) as features:
        encoder(torch.as_tensor(ready.tensor))
    return dict(features)


def one_block(features: Any, grid: WindowGrid, methods: Mapping[str, MergeMethod]) -> list[tuple[str, float, float]]:
    """(method, spectral distance, share of tokens kept) of every window of one block; pads are no nodes."""
    from structsam_export.tokens import Tokens

    slots = {name: np.asarray(m.plan(Tokens(features, grid)).slot) for name, m in methods.items()}
    distances = []
    for window, (tokens, pads) in enumerate(zip(np.asarray(grid.partition(features)), grid.pads())):
        real = ~np.array(pads)
        weights = token_graph(tokens[real])
        original = spectrum(weights)
        for name, slot in slots.items():
            groups = slot[window][real]
            share = len(np.unique(groups)) / len(groups)
            distances.append((name, spectral_distance(weights, groups, original), share))
    return distances


def table(report: dict[str, Any]) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """A report as the head and the rows of a table for people."""
    rows = []
    for row in report["rows"]:
        means = ("-" if row[k] is None else f"{row[k]:.3f}" for k in ("window", "global"))
        rows.append((row["name"], "-" if row["kept"] is None else f"{row['kept']:.1%}", *means))
    return ("method", "tokens kept", "spectral distance, windows", "global"), rows
