"""Titles and prompts of the bundled photos, in pixels of the stored JPEG from its top left corner."""

from __future__ import annotations

from typing import Any

# A prompt is (name, place) or (name, place, label in the mask); a place is a point (x, y), a box (x0, y0, x1, y1), or
# None: the tight box of that label.
# fmt: off
PHOTOS: dict[str, tuple[str, list[tuple[Any, ...]]]] = {
    "astronaut": ("Astronaut Eileen Collins", [
        ("head and neck", (153, 16, 302, 190)), ("helmet", (277, 343, 512, 512)), ("mission patch", None, 1),
        ("mission patch, point", (170, 405), 1), ("face", (219, 125)), ("name tag", (290, 352))]),
    "camera": ("Man with a video camera", [
        ("man", (0, 62, 332, 512)), ("video camera", (252, 138, 326, 186)), ("tower", (411, 116, 433, 193)),
        ("coat", (100, 260)), ("tower, point", (422, 165))]),
    "cell": ("Cell floating in saline", [("cell", None, 1), ("cell, point", (420, 360), 1)]),
    "chelsea": ("Chelsea the cat", [
        ("eye on the left", (135, 85, 206, 148)), ("eye on the right", (296, 109, 344, 164)),
        ("nose", (235, 226, 293, 266)), ("iris", (150, 116)), ("nose, point", (272, 238))]),
    "coffee": ("Cup of coffee", [
        ("cup", None, 1), ("saucer", (76, 68, 479, 390)), ("spoon", (325, 66, 425, 326)),
        ("coffee", (290, 160)), ("spoon, point", (350, 290))]),
    "coins": ("Greek coins", [
        ("row 1, coin 6", None, 1), ("row 2, coin 4", None, 9), ("row 3, coin 2", None, 16),
        ("row 4, coin 5", None, 21), ("row 1, coin 1, point", (45, 55), 5), ("row 3, coin 6, point", (350, 190), 13)]),
    "retina": ("Retina of a left eye", [
        ("optic disc", (57, 250, 143, 348)), ("fundus", (4, 3, 635, 635)),
        ("optic disc, point", (115, 300)), ("macula", (321, 317))]),
}
# fmt: on
