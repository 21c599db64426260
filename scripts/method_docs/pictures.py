"""The pictures of docs/methods.md, one for each method.

Every picture shows one bundled photo and what each variant of a method does with it at rate 0.5 in one global block of
the demo model: groups of merged tokens in their mean colour and outlined, everything else at full resolution.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from method_docs.encoder import demo_on, encode
from method_docs.package import (
    METHODS,
    PROMPT_AWARE,
    ExportConfig,
    LoadedModel,
    Photo,
    Prepared,
    method_class,
    prompt_box,
    resolve,
    token_map,
    with_prompts,
)
from PIL import Image, ImageDraw, ImageFont

FOLDER = Path(__file__).parents[2] / "docs" / "images" / "methods"
PHOTO, BLOCK, RATE, SIDE = "chelsea", 5, 0.5, 300


def pictures() -> None:
    """One picture for each method, its variants side by side."""
    loaded, photo, ready = demo_on(PHOTO)
    FOLDER.mkdir(parents=True, exist_ok=True)
    for name in METHODS:
        if name == "none":
            continue
        shots = {"photo": photo.image}
        for variant in method_class(name).VARIANTS:
            shots[variant] = shot(loaded, photo, ready, ExportConfig(method=name, variant=variant, rate=RATE))
        if name in PROMPT_AWARE:
            config = ExportConfig(method=name, rate=RATE, prompt_aware=True)
            shots["prompt-aware"] = shot(loaded, photo, ready, config)
        save(FOLDER / f"{name}.jpg", shots)
        print(FOLDER / f"{name}.jpg")


def shot(loaded: LoadedModel, photo: Photo, ready: Prepared, config: ExportConfig) -> np.ndarray:
    """The token map of one variant, uint8 (h, w, 3): its plan in BLOCK, or the one of the whole encoder."""
    geometry, aware = loaded.geometry, config.prompt_aware
    schedule = resolve(config, geometry)
    boxes = prompt_box(photo.prompts[0], ready.scale) if aware else None
    decisions = encode(loaded, ready.tensor, schedule, boxes)[1]
    key = next((k for k in (f"plan.{BLOCK}", *decisions) if k in decisions), None)
    if key is None:  # nothing depends on the image: ask the method itself
        grid = geometry.window_grid(BLOCK)
        method: Any = schedule.method
        plan = method.plan(None, grid, 1)
    else:
        plan, grid = decisions[key].plan, geometry.window_grid(int(key.split(".")[1]))
    made = token_map(ready, photo.image, plan.token_groups(grid))
    if not aware:
        return made
    height, width = photo.image.shape[:2]
    return with_prompts(np.asarray(Image.fromarray(made).resize((width, height))), photo.prompts[:1])


def save(path: Path, shots: dict[str, np.ndarray]) -> None:
    """Images side by side with captions, as one JPEG."""
    images = [Image.fromarray(shot) for shot in shots.values()]
    height = round(SIDE * images[0].height / images[0].width)
    sheet = Image.new("RGB", (len(images) * (SIDE + 6) - 6, height + 22), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (caption, image) in enumerate(zip(shots, images)):
        sheet.paste(image.resize((SIDE, height), Image.Resampling.LANCZOS), (i * (SIDE + 6), 22))
        pen.text((i * (SIDE + 6) + 2, 3), caption, fill="black", font=font)
    sheet.save(path, quality=85)
