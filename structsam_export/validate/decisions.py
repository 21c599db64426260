"""Merge decisions of two runtimes: which tokens they treat alike, and which differences rounding alone explains.

A method picks one of hundreds of candidates for every token. Where two of them are equal to rounding, PyTorch and
another runtime may pick differently; a whole token then moves, and numbers cannot match. Such a difference is a tie,
and it is told apart from an error in two steps. First, a graph is run with PyTorch's own decisions fed in, so that
every layer sees the same tokens: its numbers must then match, and it says what it would have decided itself. Second,
a decision that still differs is a tie only if PyTorch takes that decision differently, too, once its input is moved
by NOISE of its standard deviation.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from structsam_export.patch.roles import GRID_PARTS

if TYPE_CHECKING:
    from structsam_export.patch.roles import Decision

NOISE, TRIES = 3e-5, 64
GIVEN = ".computed"  # what a graph decides itself, where decisions are fed in


def names_of(outputs: Mapping[str, Any]) -> list[str]:
    """Decisions among a stage's outputs: "plan.3", "grid.2", ..."""
    return list(dict.fromkeys(key.rpartition(".")[0] for key in outputs if key != "image_embeddings"))


def decided(outputs: Mapping[str, Any], name: str, tokens: int = 0) -> np.ndarray:
    """One integer for everything a decision settles, (images or calls, ...), the same however slots are ordered.

    Where each token is merged to, whether it is kept (1), or what joins what in a line and whose values stay. `tokens`
    of an image need not be given where the outputs hold an embedding.
    """
    parts = {k.rpartition(".")[2]: np.asarray(v) for k, v in outputs.items() if k.startswith(f"{name}.")}
    if "rows" in parts:
        return np.concatenate([parts[part].ravel() for part in GRID_PARTS])[None]
    if "keys" in parts:
        kept = np.zeros((len(parts["keys"]), tokens or int(np.prod(outputs["image_embeddings"].shape[-2:]))), np.int64)
        np.put_along_axis(kept, parts["keys"], 1, axis=1)
        return kept
    if "keep" in parts:
        split: np.ndarray = parts["slot"] < parts["keep"].shape[1]
        return split.astype(np.int64)
    target = np.take_along_axis(parts["pos"], parts["slot"], axis=1)
    return on_all_calls(target, parts["order"]) if "order" in parts else target


def on_all_calls(target: np.ndarray, order: np.ndarray) -> np.ndarray:
    """Destinations of the merging calls (B * M, N), put at their places among all W calls: (B * W, N)."""
    (B, W), N = order.shape, target.shape[1]
    merging = len(target) // B
    everything = np.tile(np.arange(N), (B, W, 1))
    for image, calls in enumerate(order):
        everything[image, calls[W - merging :]] = target[image * merging : (image + 1) * merging]
    return everything.reshape(B * W, N)


def merged_tokens(target: np.ndarray) -> np.ndarray:
    """Tokens that share a slot with another one, from destinations (calls, N)."""
    merged = np.zeros(target.shape, bool)
    for found, row in zip(merged, target):
        found[:] = np.bincount(row, minlength=len(row))[row] > 1
    return merged


def agreement(first: Sequence[Any], second: Sequence[Any]) -> dict[str, float]:
    """Share of equal decisions by name, over all photos."""
    return {
        name: float(np.mean([(decided(a, name) == decided(b, name)).mean() for a, b in zip(first, second)]))
        for name in names_of(first[0])
    }


def ties(
    decisions: Sequence[Mapping[str, Decision]], first: Sequence[Any], second: Sequence[Any], noise: float = NOISE
) -> dict[str, Any]:
    """Differences between two stages that saw the same tokens, and how many of them are ties.

    Args:
        decisions: PyTorch's decisions of every photo, with what they were taken from.
        first, second: outputs of both stages for every photo.
        noise: by how many standard deviations PyTorch's input moves.

    Returns:
        `differ`, `ties`, `of` (all decisions), and `by_name` for the decisions that differ somewhere.
    """
    total = {"differ": 0, "ties": 0, "of": 0}
    by_name: dict[str, dict[str, int]] = {}
    for taken, a, b in zip(decisions, first, second):
        for name in names_of(a):
            mine, other = decided(a, name), decided(b, name)
            different = mine != other
            total["of"] += mine.size
            if not different.any():
                continue
            tied = int((different & unstable(taken[name], name, mine, noise, different)).sum())
            row = by_name.setdefault(name, {"differ": 0, "ties": 0})
            for key, value in (("differ", int(different.sum())), ("ties", tied)):
                row[key] += value
                total[key] += value
    return {**total, "by_name": by_name}


def unstable(
    decision: Decision, name: str, taken: np.ndarray, noise: float = NOISE, asked: np.ndarray | None = None
) -> np.ndarray:
    """Where PyTorch decides differently itself when its input moves by `noise`; stops once all of `asked` are found."""
    moved = np.zeros(taken.shape, bool)
    for seed in range(TRIES):
        plan = decision.again(noise, seed)
        made = {f"{name}.{part}": getattr(plan, part).numpy() for part in plan.parts}
        again = decided(made, name, taken.shape[-1])
        moved |= again != taken
        if asked is not None and moved[asked].all():
            break
    return moved


def first_image(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs of the first image of a batch; calls of one image stand together."""
    batch = outputs["image_embeddings"].shape[0]
    return {key: value[: value.shape[0] // batch] for key, value in outputs.items()}


@contextmanager
def readable(path: Path, names: Sequence[str], *, given: bool = False) -> Iterator[Path]:
    """A copy of an encoder that also outputs its decisions; weights in a side file are shared, not copied.

    Args:
        path: an encoder.
        names: tensors to read, as `trace.decision_names` gives them; those the graph no longer holds are left out.
        given: the decisions become inputs, and what the graph decides itself is output as NAME.computed.

    Yields:
        Path of the copy.
    """
    import onnx

    from structsam_export.files import disk_errors

    copy = path.with_name(f".{path.stem}.decisions.onnx")
    model = onnx.load(str(path), load_external_data=False)
    expose(model, names, given)
    try:
        with disk_errors(path.parent):
            onnx.save(model, str(copy))
        yield copy
    finally:
        copy.unlink(missing_ok=True)


def expose(model: Any, names: Sequence[str], given: bool) -> None:
    """Make tensors of a model outputs, or inputs with what was computed as outputs."""
    import onnx

    graph = model.graph
    made = {out for node in graph.node for out in node.output}
    constants = {t.name for t in graph.initializer}
    infos = {v.name: v for v in [*graph.value_info, *graph.output]}
    present = [name for name in names if name in made or name in constants]
    for name in dict.fromkeys(name.rpartition(".")[0] for name in present if given):
        decide_apart(graph, [f"{name}.{part}" for part in ("order", "pos", "slot", "sources")])
    makers = {out: (node, i) for node in graph.node for i, out in enumerate(node.output)}
    outputs = {o.name for o in graph.output}
    for name in present:
        info = infos.get(name) or onnx.helper.make_empty_tensor_value_info(name)
        if not given or name in constants:  # a constant is nobody's decision
            if name not in outputs:
                graph.output.append(info)
            continue
        if name in makers:
            node, i = makers[name]
            node.output[i] = name + GIVEN
        for output in [o for o in graph.output if o.name == name]:
            graph.output.remove(output)
        graph.input.append(info)
        graph.output.append(onnx.helper.make_empty_tensor_value_info(name + GIVEN))


def decide_apart(graph: Any, parts: Sequence[str]) -> None:
    """Double the nodes between the parts of one decision, so that none is computed from another one that is given.

    Parts follow from each other (slots from sources), and the exporter shares nodes between deciding and merging: what
    a graph decides itself comes from the doubles alone, NAME.computed. What the originals would make is left unused.
    """
    import onnx

    made = {out for node in graph.node for out in node.output}
    own = {part for part in parts if part in made}
    after, before = set(own), set(own)
    for node in graph.node:
        if after & set(node.input):
            after |= set(node.output)
    for node in reversed(graph.node):
        if before & set(node.output):
            before |= set(node.input)
    nodes = []
    for node in graph.node:
        nodes.append(node)
        if not (after & set(node.input) and before & set(node.output)):
            continue
        twin = onnx.NodeProto()
        twin.CopyFrom(node)
        twin.name += GIVEN
        for i, name in enumerate(node.input):
            twin.input[i] = name + GIVEN if name in after else name
        for i, name in enumerate(node.output):
            twin.output[i] = name + GIVEN
            if name in own:
                node.output[i] = name + ".unused"
        nodes.append(twin)
    copies = [onnx.NodeProto.FromString(node.SerializeToString()) for node in nodes]
    del graph.node[:]
    graph.node.extend(copies)
