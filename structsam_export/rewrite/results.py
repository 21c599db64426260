"""What rules report, as values."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Fired:
    """One run of one rule.

    `count`: how often it changed the graph; `skipped`: "<node>: <reason>" for each near match that it left alone.
    """

    count: int
    skipped: tuple[str, ...] = ()


@dataclass(frozen=True)
class Rewritten:
    """One run of several rules.

    `counts`: rule -> times fired, in the order the rules first ran; `skipped`: "<rule>: <node>: <reason>" for each near
    match that was left alone; `nodes_before`, `nodes`: nodes of the graph before and after, those in subgraphs not
    counted.
    """

    counts: dict[str, int]
    skipped: tuple[str, ...]
    nodes_before: int
    nodes: int

    def then(self, later: Rewritten) -> Rewritten:
        """This run and one that followed it on the same graph, as one: counts of a rule are added."""
        rules = self.counts | later.counts
        counts = {rule: self.counts.get(rule, 0) + later.counts.get(rule, 0) for rule in rules}
        return Rewritten(counts, self.skipped + later.skipped, self.nodes_before, later.nodes)
