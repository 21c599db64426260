"""How long the encoder takes in PyTorch: every configuration in turns, as ratios to the unpatched model.

PyTorch runs merging as written, operator by operator. These ratios say whether saved MACs are eaten up by moving
tokens, not what is gained once exported: `bench` measures that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from structsam_export.evaluate.store import key_of, read

if TYPE_CHECKING:
    import numpy as np

    from structsam_export.evaluate.store import Store

RUNS = 5
FILE = "latency.json"


def measured(predictors: Sequence[Any], image: np.ndarray, store: Store) -> dict[str, Any]:
    """Times of every model's encoder on one image, kept in the store: ratios belong to one session.

    Args:
        predictors: PyTorch models, the unpatched one first.
        image: float32 (1, 3, S, S); what is on it does not change the work.
        store: times are read from it if it has all that are asked for, from a machine like this one.

    Returns:
        `runs`, `threads`, `cpu`, and `seconds`: by model, in the order measured.
    """
    import torch

    from structsam_export.console import stage
    from structsam_export.environment import cpu_name

    facts = {"runs": RUNS, "threads": torch.get_num_threads(), "cpu": cpu_name()}
    keys = {p.name: key_of(p.identity) for p in predictors}
    kept = read(store.folder / FILE) or {}
    if all(kept.get(k) == v for k, v in facts.items()) and keys.items() <= kept.get("keys", {}).items():
        return {**facts, "seconds": {name: kept["seconds"][name] for name in keys}}
    with stage(f"encoder latency of {len(keys)} models, {RUNS} rounds") as say:
        seconds = timed(predictors, image, say)
    store.write(FILE, {**facts, "keys": keys, "seconds": seconds})
    return {**facts, "seconds": seconds}


def timed(predictors: Sequence[Any], image: np.ndarray, say: Callable[[str], None]) -> dict[str, list[float]]:
    """Seconds of `RUNS` encoder calls of every model, in turns, after a warm-up."""
    from structsam_export.eager import timed_encoder
    from structsam_export.timing import interleaved

    calls = {p.name: timed_encoder(p.loaded, p.schedule, image) for p in predictors}
    taken = interleaved(calls, RUNS, say)
    return {name: [round(s, 6) for s in values] for name, values in taken.items()}


def ratios(seconds: dict[str, list[float]], reference: str) -> dict[str, dict[str, float]]:
    """`p50` (ms) and `ratio` of every model: the median of the ratios to the reference within each round."""
    import numpy as np

    base = np.asarray(seconds[reference])
    return {
        name: {
            "p50": round(float(np.median(values)) * 1e3, 3),
            "ratio": round(float(np.median(np.asarray(values) / base)), 4),
        }
        for name, values in seconds.items()
    }
