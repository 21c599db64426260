"""Small attentions in every layout that encoders and rules leave them in, and the same in plain numpy."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from graphs import feeds_of, graph_of, node, run


@dataclass(frozen=True)
class Case:
    """A graph with output y, and its queries (.., n, d), keys (.., m, d) and values (.., m, e) as numpy computes them.

    `operands` takes the feeds by name; `after` is what the graph does with the result.
    """

    nodes: list
    inputs: dict
    operands: object
    after: object = staticmethod(lambda out: out)
    constants: dict = field(default_factory=dict)

    def graph(self, opset, outputs="y"):
        return graph_of(self.nodes, self.inputs, outputs, opset, **self.constants)


def softmax_attention(q, k, v):
    """softmax(q k') v in double precision, one row of weights at a time."""
    q, k, v = (np.asarray(t, np.float64) for t in (q, k, v))
    out = np.empty((*q.shape[:-1], v.shape[-1]))
    for index in np.ndindex(*q.shape[:-1]):
        batch = index[:-1]
        weights = np.exp([float(q[index] @ row) for row in k[batch]])
        out[index] = (weights[:, None] * v[batch]).sum(0) / weights.sum()
    return out


def check_is_attention(graph, case, atol=1e-5):
    """The graph computes what numpy does."""
    feeds = feeds_of(graph)
    made = run(graph, feeds)["y"]
    expected = case.after(softmax_attention(*case.operands(**feeds)))
    assert made.shape == expected.shape
    assert np.ptp(expected) > 0.5
    assert np.allclose(made, expected, atol=atol)


def attend(q="q", keys="k", v="v", out="y", **softmax):
    """Nodes of softmax(q . keys) . v, keys being transposed already."""
    return [
        node("MatMul", f"{q} {keys}", "scores"),
        node("Softmax", "scores", "weights", **{"axis": -1, **softmax}),
        node("MatMul", f"weights {v}", out),
    ]


def swapped(tensor):
    return np.swapaxes(tensor, -1, -2)


def heads_first(tensor):
    return np.transpose(tensor, (0, 2, 1, 3))


RANDOM = np.random.default_rng(1)
ROWS = RANDOM.standard_normal((1, 3, 7)).astype(np.float32)  # positions: 3 channels of 7 keys
KEYS = RANDOM.standard_normal((6, 4, 7)).astype(np.float32)

# 5 queries, 7 keys; 4 channels of queries and keys.
CASES = {
    "heads brought to the front and back": Case(
        [
            node("Transpose", "q", "qh", perm=[0, 2, 1, 3]),
            node("Transpose", "k", "kh", perm=[0, 2, 3, 1]),
            node("Transpose", "v", "vh", perm=[0, 2, 1, 3]),
            *attend("qh", "kh", "vh", "out"),
            node("Transpose", "out", "y", perm=[0, 2, 1, 3]),
        ],
        {"q": [2, 5, 3, 4], "k": [2, 7, 3, 4], "v": [2, 7, 3, 4]},
        lambda q, k, v: map(heads_first, (q, k, v)),
        heads_first,
    ),
    "heads brought to the front, wide values": Case(
        [
            node("Transpose", "q", "qh", perm=[0, 2, 1, 3]),
            node("Transpose", "k", "kh", perm=[0, 2, 3, 1]),
            node("Transpose", "v", "vh", perm=[0, 2, 1, 3]),
            *attend("qh", "kh", "vh", "out"),
            node("Transpose", "out", "y", perm=[0, 2, 1, 3]),
        ],
        {"q": [2, 5, 3, 4], "k": [2, 7, 3, 4], "v": [2, 7, 3, 6]},
        lambda q, k, v: map(heads_first, (q, k, v)),
        heads_first,
    ),
    "heads stay in front": Case(
        [
            node("Transpose", "q", "qh", perm=[0, 2, 1, 3]),
            node("Transpose", "k", "kh", perm=[0, 2, 3, 1]),
            node("Transpose", "v", "vh", perm=[0, 2, 1, 3]),
            *attend("qh", "kh", "vh"),
        ],
        {"q": [2, 5, 3, 4], "k": [2, 7, 3, 4], "v": [2, 7, 3, 4]},
        lambda q, k, v: map(heads_first, (q, k, v)),
    ),
    "batch and heads": Case(
        attend(),
        {"q": [2, 3, 5, 4], "k": [2, 3, 4, 7], "v": [2, 3, 7, 4]},
        lambda q, k, v: (q, swapped(k), v),
    ),
    "batch and heads in one": Case(
        attend(),
        {"q": [6, 5, 4], "k": [6, 4, 7], "v": [6, 7, 4]},
        lambda q, k, v: (q, swapped(k), v),
    ),
    "narrow values": Case(
        attend(),
        {"q": [6, 5, 4], "k": [6, 4, 7], "v": [6, 7, 2]},
        lambda q, k, v: (q, swapped(k), v),
    ),
    "wide values": Case(
        attend(),
        {"q": [2, 3, 5, 4], "k": [2, 3, 4, 7], "v": [2, 3, 7, 6]},
        lambda q, k, v: (q, swapped(k), v),
    ),
    "the axis counted from the front": Case(
        attend(axis=2),
        {"q": [6, 5, 4], "k": [6, 4, 7], "v": [6, 7, 4]},
        lambda q, k, v: (q, swapped(k), v),
    ),
    "keys transposed": Case(
        [node("Transpose", "k", "kt", perm=[0, 2, 1]), *attend(keys="kt")],
        {"q": [6, 5, 4], "k": [6, 7, 4], "v": [6, 7, 4]},
        lambda q, k, v: (q, k, v),
    ),
    "keys with positions beside them": Case(
        [
            node("Transpose", "k", "kt", perm=[0, 2, 1]),
            node("Expand", "rows spread", "positions"),
            node("Concat", "kt positions", "all", axis=-2),
            *attend(keys="all"),
        ],
        {"q": [6, 5, 7], "k": [6, 7, 4], "v": [6, 7, 4]},
        lambda q, k, v: (q, np.concatenate([k, np.broadcast_to(swapped(ROWS), (6, 7, 3))], -1), v),
        constants={"rows": ROWS, "spread": [6, 3, 7]},
    ),
    "keys with more keys beside them": Case(
        [node("Concat", "k more", "all", axis=-1), *attend(keys="all")],
        {"q": [6, 5, 4], "k": [6, 4, 3], "more": [6, 4, 4], "v": [6, 7, 4]},
        lambda q, k, more, v: (q, swapped(np.concatenate([k, more], -1)), v),
    ),
    "keys the same for all heads": Case(
        [node("Expand", "k spread", "all"), *attend(keys="all")],
        {"q": [2, 3, 5, 4], "k": [2, 1, 4, 7], "v": [2, 3, 7, 4]},
        lambda q, k, v: (q, np.broadcast_to(swapped(k), (2, 3, 7, 4)), v),
        constants={"spread": [2, 3, 4, 7]},
    ),
    "keys expanded by fewer axes than they have": Case(
        [node("Expand", "k spread", "all"), *attend(keys="all")],
        {"q": [6, 5, 4], "k": [6, 4, 1], "v": [6, 7, 4]},
        lambda q, k, v: (q, np.broadcast_to(swapped(k), (6, 7, 4)), v),
        constants={"spread": [4, 7]},
    ),
    "constant keys": Case(
        attend(keys="keys"),
        {"q": [6, 5, 4], "v": [6, 7, 4]},
        lambda q, v: (q, swapped(KEYS), v),
        constants={"keys": KEYS},
    ),
    "queries are keys and values": Case(
        [node("Transpose", "q", "kt", perm=[0, 2, 1]), *attend(keys="kt", v="q")],
        {"q": [6, 5, 4]},
        lambda q: (q, q, q),
    ),
}

# What both rules leave alone, and why.
SHAPES = {"q": [6, 5, 4], "k": [6, 4, 7], "v": [6, 7, 4]}
ELSEWHERE, UNKNOWN, LEADING = "read elsewhere", "shapes are not all known", "different leading axes"
NEAR = {
    "scores read twice": ([*attend(), node("Neg", "scores", "z")], SHAPES, "y z", ELSEWHERE),
    "scores are an output": (attend(), SHAPES, "y scores", ELSEWHERE),
    "weights read twice": ([*attend(), node("Neg", "weights", "z")], SHAPES, "y z", ELSEWHERE),
    "weights are an output": (attend(), SHAPES, "y weights", ELSEWHERE),
    "weights are not multiplied": ([*attend()[:2], node("Neg", "weights", "y")], SHAPES, "y", ELSEWHERE),
    "unknown shapes": (attend(), {"q": ["B", 5, 4], "k": ["B", 4, 7], "v": ["B", 7, 4]}, "y", UNKNOWN),
    "softmax over the queries": (attend(axis=1), SHAPES, "y", LEADING),
    "softmax over the batch": (attend(axis=0), SHAPES, "y", LEADING),
    "keys of all heads as one": (attend(), {**SHAPES, "k": [1, 4, 7]}, "y", LEADING),
    "values of all heads as one": (attend(), {**SHAPES, "v": [7, 4]}, "y", LEADING),
    "queries of all heads as one": (attend(), {**SHAPES, "q": [1, 5, 4]}, "y", LEADING),
}
# Softmaxes that are no attention: no reason to give.
OTHERS = {
    "softmax of something else": ([node("Softmax", "q", "y", axis=-1)], {"q": [6, 5, 4]}, "y"),
    "scores with a mask": (
        [
            node("MatMul", "q k", "scores"),
            node("Add", "scores mask", "masked"),
            node("Softmax", "masked", "weights", axis=-1),
            node("MatMul", "weights v", "y"),
        ],
        {**SHAPES, "mask": [6, 5, 7]},
        "y",
    ),
}
