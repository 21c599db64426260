"""What a command asks for: prompts as they are typed, checked against a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path
from typing import Any

import numpy as np

from structsam_export.errors import PromptError, UsageError, shortened

Point = tuple[float, float, int]
Box = tuple[float, float, float, float]
NO_PROMPT = "Nothing is asked for. Pass --point X,Y, --box X0,Y0,X1,Y1 or --everything."


@dataclass(frozen=True)
class OnePrompt:
    """Points (x, y, label) and a box, all about one object."""

    points: tuple[Point, ...] = ()
    box: Box | None = None

    def arrays(self) -> dict[str, Any]:
        """Arguments of `Predictor.predict`."""
        found: dict[str, Any] = {}
        if self.points:
            found["point_coords"] = np.array([point[:2] for point in self.points], float)
            found["point_labels"] = np.array([point[2] for point in self.points])
        if self.box is not None:
            found["box"] = np.array(self.box, float)
        return found

    def to_dict(self) -> dict[str, Any]:
        """The fields that hold something."""
        points = {"points": [list(point) for point in self.points]} if self.points else {}
        return points | ({"box": list(self.box)} if self.box is not None else {})


@dataclass(frozen=True)
class Asked:
    """All that is asked of each picture.

    All points are about one object. So is one box with them; without points, every box is an object of its own.

    Args:
        points: x, y, label (1 foreground, 0 background).
        boxes: x0, y0, x1, y1.
        multimask: three masks of each prompt rather than one.
        everything: parameters of `AutomaticMaskGenerator`, which takes no prompts; None: prompts.
    """

    points: tuple[Point, ...] = ()
    boxes: tuple[Box, ...] = ()
    multimask: bool = False
    everything: dict[str, Any] | None = None

    @classmethod
    def of_text(
        cls,
        points: Sequence[str] = (),
        boxes: Sequence[str] = (),
        *,
        multimask: bool = False,
        everything: dict[str, Any] | None = None,
    ) -> Asked:
        """Prompts as they are typed: "X,Y" or "X,Y,LABEL", and "X0,Y0,X1,Y1".

        Raises:
            PromptError: text that is no prompt.
            UsageError: prompts that do not go together, or none.
        """
        if everything is not None and (points or boxes or multimask):
            raise UsageError("--everything takes no prompts. Leave --point, --box and --multimask away.")
        if everything is None and not points and not boxes:
            raise UsageError(NO_PROMPT)
        if points and len(boxes) > 1:
            raise UsageError("Points belong to one object, and several boxes are several. Pass one --box with points.")
        made = cls(tuple(map(_point, points)), tuple(map(_box, boxes)), multimask, everything)
        if made.points and not made.boxes and all(label == 0 for *_, label in made.points):
            raise PromptError("Every point is background. Pass a --point of the object, or a --box around it.")
        return made

    def prompts(self) -> list[OnePrompt]:
        """One for each object."""
        if self.points:
            return [OnePrompt(self.points, self.boxes[0] if self.boxes else None)]
        return [OnePrompt(box=box) for box in self.boxes]

    def check(self, path: Path, size: tuple[int, int]) -> None:
        """Refuse prompts outside a picture of `size` (H, W).

        Raises:
            PromptError: with the first of them.
        """
        h, w = size
        for x, y, _ in self.points:
            if not (0 <= x < w and 0 <= y < h):
                raise PromptError(
                    f"Point {x:g},{y:g} is outside {path}, which is {w} x {h} px. Pass pixels of the picture."
                )
        for x0, y0, x1, y1 in self.boxes:
            if min(x0, y0) < 0 or x1 > w or y1 > h:
                raise PromptError(
                    f"Box {x0:g},{y0:g},{x1:g},{y1:g} is not inside {path}, which is {w} x {h} px. Pass pixels of the "
                    "picture."
                )

    def to_dict(self) -> dict[str, Any]:
        """As plain values."""
        if self.everything is not None:
            return {"everything": self.everything}
        return {"prompts": [prompt.to_dict() for prompt in self.prompts()], "multimask": self.multimask}


def _parts(text: str, option: str, form: str, counts: Sequence[int]) -> list[float]:
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError:
        found = []
    if len(found) not in counts or not all(map(isfinite, found)):
        raise PromptError(f"Cannot read {option} '{shortened(text)}'. Pass {option} {form}, in pixels.")
    return found


def _point(text: str) -> Point:
    x, y, *label = _parts(text, "--point", "X,Y or X,Y,1 (object) or X,Y,0 (background)", (2, 3))
    if label and label[0] not in (0, 1):
        raise PromptError(f"The label of --point '{shortened(text)}' is neither 1 (object) nor 0 (background).")
    return x, y, int(label[0]) if label else 1


def _box(text: str) -> Box:
    x0, y0, x1, y1 = _parts(text, "--box", "X0,Y0,X1,Y1", (4,))
    if not (x0 < x1 and y0 < y1):
        raise PromptError(
            f"--box '{shortened(text)}' is empty: its upper left corner comes first, X0 < X1 and Y0 < Y1."
        )
    return x0, y0, x1, y1
