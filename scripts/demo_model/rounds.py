"""What the demo model is trained on, and in which order: `FIRST` made its first weights, `SECOND` improved them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Round:
    """`steps` steps on `scenes` scenes of `size` px with `prompts` prompts each, from `lr` down to `lr_end`.

    No prompts: the encoder learns the dense targets alone. `hard`: harder scenes, Muon, and the optimizer starts anew.
    """

    size: int
    steps: int
    scenes: int
    prompts: int
    lr: float
    lr_end: float
    hard: bool = False


FIRST = (
    Round(384, 800, 8, 0, 1e-3, 8e-4),
    Round(384, 700, 6, 6, 8e-4, 4e-4),
    Round(512, 900, 4, 6, 5e-4, 2e-5),
    Round(512, 300, 4, 6, 3e-4, 5e-5),
    Round(512, 300, 4, 6, 2e-4, 5e-6),
)
SECOND = (
    Round(512, 600, 4, 6, 6e-4, 6e-4, hard=True),
    Round(512, 1800, 4, 6, 1e-3, 0.0, hard=True),
    Round(512, 1500, 4, 6, 1e-3, 0.0, hard=True),
)
ROUNDS = FIRST + SECOND
