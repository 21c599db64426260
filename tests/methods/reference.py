"""The merging methods once more, from their specification alone: one token at a time, in double precision.

`decide` says where every token of every attention call goes, and which of these answers hang on a difference too
small for single precision. Nothing here is shared with `structsam_export.methods`.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np

PAD = None
CLOSE = 1e-6  # cosines and redundancies closer than this may come out in either order in single precision

GOLDEN, MASK = 0x9E3779B97F4A7C15, (1 << 64) - 1
SOBEL_X = np.array([[-1, 0, 1], [-2, 0, 2], [-1, 0, 1]])
SOBEL_Y = np.array([[-1, -2, -1], [0, 0, 0], [1, 2, 1]])
PUBLISHED_Y = np.array([[-1, -2, 1], [0, 0, 0], [1, 2, 1]])


def splitmix64(seed, count):
    """The first outputs of Steele, Lea and Flood's SplitMix64."""
    outputs = []
    for i in range(1, count + 1):
        z = (seed + i * GOLDEN) & MASK
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        outputs.append(z ^ (z >> 31))
    return outputs


@dataclass
class Call:
    """One attention call: where its tokens lie on the grid (PAD beyond it), their values and directions (pads: 0)."""

    places: list
    rows: int
    columns: int
    x: np.ndarray
    real: np.ndarray = field(init=False)
    unit: np.ndarray = field(init=False)
    cells: list = field(init=False)  # token indices of every complete 2x2 cell, in raster order

    def __post_init__(self):
        self.real = np.array([place is not PAD for place in self.places])
        self.unit = np.zeros_like(self.x)
        for t in range(len(self.x)):
            if self.x[t].any():
                self.unit[t] = self.x[t] / np.linalg.norm(self.x[t])
        self.cells = [
            [t := r * self.columns + c, t + 1, t + self.columns, t + self.columns + 1]
            for r in range(0, self.rows - 1, 2)
            for c in range(0, self.columns - 1, 2)
        ]


def windows_of(layout):
    """Per attention call, the grid coordinates of its tokens; PAD beyond the grid."""
    (H, W), size = layout.shape, layout.window
    if not size:
        return [[(r, c) for r in range(H) for c in range(W)]]
    return [
        [(r, c) if r < H and c < W else PAD for r in range(top, top + size) for c in range(left, left + size)]
        for top in range(0, H, size)
        for left in range(0, W, size)
    ]


def calls_of(x, layout):
    """The attention calls of one image x (H, W, C)."""
    rows, columns = (layout.window, layout.window) if layout.window else layout.shape
    zero = np.zeros(x.shape[-1])
    return [
        Call(places, rows, columns, np.array([zero if place is PAD else x[place] for place in places]))
        for places in windows_of(layout)
    ]


def gradient_map(x, kind, published=False):
    """Squared gradient of every token of x (H, W, C), summed over channels: it has the gradient's order."""
    H, W, _ = x.shape
    zeros = published and kind == "sobel"
    around = np.pad(x, ((1, 1), (1, 1), (0, 0)), mode="constant" if zeros else "edge")
    result = np.zeros((H, W))
    for r in range(H):
        for c in range(W):
            near = around[r : r + 3, c : c + 3]
            if kind == "sobel":
                across = (SOBEL_X[..., None] * near).sum((0, 1))
                down = ((PUBLISHED_Y if published else SOBEL_Y)[..., None] * near).sum((0, 1))
            else:
                across, down = (near[1, 2] - near[1, 0]) / 2, (near[2, 1] - near[0, 1]) / 2
            result[r, c] = across @ across + down @ down
    return result


def gradients(x, layout, kind, thesis):
    """Squared gradient of every token, call by call; pads on the whole grid have none."""
    if thesis:
        return [gradient_map(c.x.reshape(c.rows, c.columns, -1), kind, True).ravel() for c in calls_of(x, layout)]
    whole = gradient_map(x, kind)
    return [np.array([0.0 if p is PAD else whole[p] for p in places]) for places in windows_of(layout)]


def redundancy(call, margin, alpha):
    """Per token the mean over all tokens of ELU_alpha(cosine - margin)."""
    result = np.zeros(len(call.unit))
    for t, u in enumerate(call.unit):
        v = call.unit @ u - margin
        result[t] = np.where(v > 0, v, alpha * (np.exp(np.minimum(v, 0)) - 1)).mean()
    return result


def pairwise_score(unit):
    """Mean of the 12 cosines between different tokens of a cell."""
    pairs = [(a, b) for a in range(4) for b in range(4) if a != b]
    return sum(unit[a] @ unit[b] for a, b in pairs) / len(pairs)


@dataclass
class Match:
    """What one call may merge: sources, destinations, and tokens whose part is too close to call."""

    call: Call
    src: list
    dst: list
    shaky: set = field(default_factory=set)
    thesis: bool = False

    def __post_init__(self):
        """Every source's destination, score, and distance to its second choice."""
        self.best, self.score, self.lead = {}, {}, {}
        call, dst = self.call, np.array(self.dst, int)
        rivals = np.array(sorted(self.shaky), int)
        for s in self.src:
            alike = dst if self.thesis else dst[call.real[dst] == call.real[s]]
            if len(alike) == 0:
                continue
            if not self.thesis and not call.real[s]:
                self.best[s], self.score[s], self.lead[s] = alike[0], math.inf, math.inf
                continue
            cosine = call.unit[alike] @ call.unit[s]
            first = int(np.argmax(cosine))
            others = np.delete(cosine, first)
            others = np.append(others, call.unit[rivals[rivals != s]] @ call.unit[s])
            self.best[s], self.score[s] = alike[first], cosine[first]
            self.lead[s] = cosine[first] - others.max(initial=-math.inf)

    def merge(self, r):
        """Send the r most similar sources away: (where every token goes, which answers are unsure)."""
        goes_to, unsure = list(range(len(self.call.unit))), np.zeros(len(self.call.unit), bool)
        order = sorted(self.best, key=lambda s: -self.score[s])
        for place, s in enumerate(order):
            if place < r:
                goes_to[s] = int(self.best[s])
                unsure[s] = self.lead[s] < CLOSE
            if 0 < r < len(order):
                cut = self.score[order[r]] if place < r else self.score[order[r - 1]]
                unsure[s] |= abs(self.score[s] - cut) < CLOSE
        unsure[list(self.shaky)] = True
        return goes_to, unsure


def alternate(call, energy, r, thesis, close):
    """The first 2r tokens by falling energy are source and destination in turn."""
    real = sorted(np.flatnonzero(call.real | thesis).tolist(), key=lambda t: -energy[t])
    pads = [] if thesis else np.flatnonzero(~call.real).tolist()
    even = len(pads) // 2 * 2
    order = pads[:even] + real + pads[even:]
    part = {t: "kept" if place >= 2 * r else ("source", "destination")[place % 2] for place, t in enumerate(order)}
    # Runs of tokens whose order is too close to call; which of the equal pads comes first does not matter.
    shaky, run = set(), []
    for t in [t for t in real if call.real[t]]:
        if run and energy[run[-1]] - energy[t] >= close:
            run = []
        run.append(t)
        if len({part[member] for member in run}) > 1:
            shaky.update(run)
    return Match(call, order[: 2 * r : 2], order[1 : 2 * r : 2], shaky, thesis)


def partition(call, dst):
    """Sources are all that are not destinations."""
    return [t for t in range(len(call.unit)) if t not in set(dst)], list(dst)


def constant_destinations(name, variant, call, seed):
    """Destinations that do not depend on the image."""
    N = len(call.unit)
    if name == "tome":
        return [t for t in range(N) if t % 2 == 1]
    if name == "vidtome":
        dy, dx = divmod(splitmix64(seed, 1)[0] >> 62, 2)
        return [t for t in range(N) if (t // call.columns % 2, t % call.columns % 2) == (dy, dx)]
    if variant == "stride2x2":
        return [cell[0] for cell in call.cells]
    if variant == "rand2x2":
        return [cell[out >> 62] for cell, out in zip(call.cells, splitmix64(seed, len(call.cells)))]
    outputs = splitmix64(seed, N)
    return sorted(sorted(range(N), key=lambda t: outputs[t])[: int(0.25 * N)])


def lowest_of_cells(call, energy, close):
    """The token of lowest energy of each cell."""
    for cell in call.cells:
        low, second = sorted(energy[t] for t in cell)[:2]
        assert not call.real[cell].all() or low == second or second - low > close, "choose another seed"
    return [min(cell, key=lambda t: energy[t]) for cell in call.cells]


def pooled_cells(calls, r, thesis):
    """ALGM: the most alike cells merge whole, into their bottom-right token."""
    scores = []
    for call in calls:
        scores.append({})
        for m, cell in enumerate(call.cells):
            pads = 4 - call.real[cell].sum()
            if thesis or pads == 0:
                scores[-1][m] = pairwise_score(call.unit[cell])
            elif pads == 4:
                scores[-1][m] = math.inf
    count = min([r // 3, *(len(score) for score in scores)])
    answers = []
    for call, score in zip(calls, scores):
        goes_to, unsure = list(range(len(call.unit))), np.zeros(len(call.unit), bool)
        order = sorted(score, key=lambda m: -score[m])
        for place, m in enumerate(order):
            cell = call.cells[m]
            for t in cell:
                if place < count:
                    goes_to[t] = cell[3]
                if 0 < count < len(order):
                    cut = score[order[count]] if place < count else score[order[count - 1]]
                    unsure[t] = abs(score[m] - cut) < CLOSE
        answers.append((goes_to, unsure))
    return answers


def decide(
    name, variant, x, layout, rate, compat=None, margin=0.0, alpha=1.0, gradient="sobel", seed=42, exact_gradient=False
):
    """Where every token goes, (B * windows, N), and which of these answers are unsure.

    Args:
        x: images (B, H, W, C) in float64.
        exact_gradient: no rounding happens in the gradients of x, so that their order is certain.
    """
    N, thesis = layout.tokens, compat == "thesis"
    r = math.floor(N * rate + 1e-9)
    calls = [call for image in x for call in calls_of(image, layout)]
    if name == "algm":
        return stacked(pooled_cells(calls, r, thesis))
    close = CLOSE
    if name == "pitome":
        energy = [redundancy(call, margin, alpha) for call in calls]
    if name == "gradtome":
        energy = [-g for image in x for g in gradients(image, layout, gradient, thesis)]
        close = 0.0 if exact_gradient else 1e-3
    if variant == "alternate" and name in ("pitome", "gradtome"):
        matches = [alternate(call, e, min(r, N // 2), thesis, close) for call, e in zip(calls, energy)]
    elif name in ("pitome", "gradtome"):  # both take the token of highest energy
        chosen = [lowest_of_cells(call, -e, close) for call, e in zip(calls, energy)]
        matches = [Match(call, *partition(call, dst), thesis=thesis) for call, dst in zip(calls, chosen)]
    else:
        chosen = [constant_destinations(name, variant, call, seed) for call in calls]
        matches = [Match(call, *partition(call, dst), thesis=thesis) for call, dst in zip(calls, chosen)]
    r = min([r, *(len(match.best) for match in matches)])  # the same for all calls
    return stacked([match.merge(r) for match in matches])


def stacked(answers):
    return np.array([goes_to for goes_to, _ in answers]), np.array([unsure for _, unsure in answers])
