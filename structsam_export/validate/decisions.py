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

from structsam_export.runtime.features import EMBEDDING, NAMES

if TYPE_CHECKING:
    from structsam_export.roles import Decision, Plan

NOISE, TRIES = 3e-5, 64
GIVEN = ".computed"  # what a graph decides itself, where decisions are fed in


def names_of(outputs: Mapping[str, Any]) -> list[str]:
    """Decisions among a stage's outputs: "plan.3", "grid.2", ..."""
    return list(dict.fromkeys(key.rpartition(".")[0] for key in outputs if key not in NAMES))


def decided(outputs: Mapping[str, Any], name: str, plan: type[Plan], tokens: int = 0) -> np.ndarray:
    """One integer for everything a decision settles, the same however its plan lists it; see `Plan.assignment`.

    Args:
        outputs: tensors of a stage by name, those of the decision's parts among them.
        name: the decision, such as "plan.3".
        plan: its kind.
        tokens: tokens of one image; 0: as many as the embedding among the outputs has.
    """
    parts = {part: np.asarray(outputs[f"{name}.{part}"]) for part in plan.PARTS}
    if not tokens and EMBEDDING in outputs:
        tokens = int(np.prod(outputs[EMBEDDING].shape[-2:]))
    return plan.assignment(parts, tokens)


def merged_tokens(target: np.ndarray) -> np.ndarray:
    """Tokens that share a slot with another one, bool (windows, N), from destinations (windows, N)."""
    return np.array([np.bincount(row, minlength=len(row))[row] > 1 for row in target], dtype=bool)


def agreement(first: Sequence[Any], second: Sequence[Any], plans: Mapping[str, type[Plan]]) -> dict[str, float]:
    """Share of equal decisions by name, over all photos.

    Args:
        first, second: outputs of both stages for every photo.
        plans: kind of each decision, as `patch.decisions_of` gives them; those that `first` does not hold are left out.
    """
    return {
        name: float(
            np.mean(
                [(decided(a, name, plans[name]) == decided(b, name, plans[name])).mean() for a, b in zip(first, second)]
            )
        )
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
            kind = type(taken[name].plan)
            mine, other = decided(a, name, kind), decided(b, name, kind)
            different = mine != other
            total["of"] += mine.size
            if not different.any():
                continue
            tied = int((different & unstable(taken[name], mine, noise, different)).sum())
            row = by_name.setdefault(name, {"differ": 0, "ties": 0})
            for key, value in (("differ", int(different.sum())), ("ties", tied)):
                row[key] += value
                total[key] += value
    return {**total, "by_name": by_name}


def unstable(
    decision: Decision, taken: np.ndarray, noise: float = NOISE, asked: np.ndarray | None = None
) -> np.ndarray:
    """Where PyTorch decides differently itself when its input moves by `noise`: bool of the shape of `taken`.

    Args:
        decision: PyTorch's.
        taken: what it settled, as `decided` gives it.
        noise: by how many standard deviations the input moves.
        asked: stops once all of these, bool of the shape of `taken`, are found.
    """
    moved = np.zeros(taken.shape, bool)
    for seed in range(TRIES):
        plan = decision.again(noise, seed)
        parts = {part: np.asarray(getattr(plan, part)) for part in plan.PARTS}
        moved |= plan.assignment(parts, taken.shape[-1]) != taken
        if asked is not None and moved[asked].all():
            break
    return moved


def first_image(outputs: Mapping[str, Any]) -> dict[str, Any]:
    """Outputs of the first image of a batch; windows of one image stand together."""
    batch = outputs[EMBEDDING].shape[0]
    return {key: value[: value.shape[0] // batch] for key, value in outputs.items()}


@contextmanager
def readable(path: Path, plans: Mapping[str, type[Plan]], *, given: bool = False) -> Iterator[Path]:
    """A copy of an encoder that also outputs its decisions; weights in a side file are shared, not copied.

    Args:
        path: an encoder.
        plans: kind of each decision to read, as `patch.decisions_of` gives them; tensors that the graph no longer
            holds are left out.
        given: the decisions become inputs, and what the graph decides itself is output as NAME.computed.

    Yields:
        Path of the copy.
    """
    import onnx

    from structsam_export.files import disk_errors, temporary
    from structsam_export.graphs import load
    from structsam_export.reading import content_errors

    model = load(path)
    with content_errors(path):
        expose(model, plans, given)
    with temporary(path, ".onnx") as copy:
        with disk_errors(path.parent):
            onnx.save(model, str(copy))
        yield copy


def expose(model: Any, plans: Mapping[str, type[Plan]], given: bool) -> None:
    """Make the decisions of a model outputs, or inputs with what was computed as outputs."""
    import onnx

    graph = model.graph
    made = {out for node in graph.node for out in node.output}
    constants = {t.name for t in graph.initializer}
    infos = {v.name: v for v in [*graph.value_info, *graph.output]}
    tensors = {name: [f"{name}.{part}" for part in plan.PARTS] for name, plan in plans.items()}
    present = [tensor for parts in tensors.values() for tensor in parts if tensor in made or tensor in constants]
    for name, plan in plans.items():
        if given and plan.AT_ONCE:
            decide_apart(graph, tensors[name])
    makers = {out: (node, i) for node in graph.node for i, out in enumerate(node.output)}
    outputs = {o.name for o in graph.output}
    for name in present:
        info = infos.get(name) or onnx.helper.make_empty_tensor_value_info(name)
        if not given or name in constants:  # what no image changes can be read, but needs not be given
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
