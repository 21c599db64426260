"""Pictures of docs/methods.md, and the methods table of the README.

    python scripts/make_method_docs.py            # both
    python scripts/make_method_docs.py --table    # the table alone (no model is run)

Every picture shows one bundled photo and what each variant of a method does with it at rate 0.5 in one global block of
the demo model: groups of merged tokens in their mean colour and outlined, everything else at full resolution.
"""

from __future__ import annotations

import argparse
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "images" / "methods"
PHOTO, BLOCK, RATE, SIDE = "chelsea", 5, 0.5, 300
TABLE = re.compile(r"(<!-- methods: .*? -->\n).*?(<!-- end of methods -->)", re.DOTALL)


def table() -> None:
    """Put the catalogue's table between the markers of the README."""
    from structsam_export.catalogue import catalogue, markdown

    readme = ROOT / "README.md"
    made, count = TABLE.subn(lambda m: m[1] + markdown(catalogue()) + "\n" + m[2], readme.read_text())
    if count != 1:
        raise SystemExit("README.md has no place for the table: <!-- methods: ... --> and <!-- end of methods -->")
    readme.write_text(made)


def pictures() -> None:
    """One picture for each method, its variants side by side."""
    from structsam_export.methods import METHODS, PROMPT_AWARE, method_class
    from structsam_export.models import load_model
    from structsam_export.runtime.images import prepare
    from structsam_export.validate.photos import bundled_photos

    loaded = load_model("demo")
    photo = next(photo for photo in bundled_photos() if photo.name == PHOTO)
    ready = prepare(photo.image, loaded.geometry.image_size, loaded.spec.preprocessing)
    PICTURES.mkdir(parents=True, exist_ok=True)
    for name in METHODS:
        if name == "none":
            continue
        shots = {"photo": photo.image}
        forms = [(variant, False) for variant in method_class(name).VARIANTS]
        forms += [("prompt-aware", True)] if name in PROMPT_AWARE else []
        for caption, aware in forms:
            shots[caption] = token_map(loaded, photo, ready, name, None if aware else caption, aware)
        save(PICTURES / f"{name}.jpg", shots)
        print(PICTURES / f"{name}.jpg")


def token_map(loaded, photo, ready, name, variant, aware):
    """The map of one variant: its plan in BLOCK, or the one of the whole encoder."""
    import torch

    from structsam_export.config import ExportConfig
    from structsam_export.patch import prompted, recording
    from structsam_export.report.pictures import token_map, with_prompts
    from structsam_export.schedule import resolve
    from structsam_export.validate.photos import prompt_box

    config = ExportConfig(method=name, variant=variant, rate=RATE, prompt_aware=aware)
    encoder, geometry = loaded.sam.image_encoder, loaded.geometry
    schedule = resolve(config, geometry)
    boxes = torch.as_tensor(prompt_box(photo.prompts[0], ready.scale)) if aware else None
    with (
        torch.no_grad(),
        schedule.patched(encoder),
        prompted(encoder, boxes),
        recording(encoder) as decisions,
    ):
        encoder(torch.as_tensor(ready.tensor))
    key = next((k for k in (f"plan.{BLOCK}", *decisions) if k in decisions), None)
    if key is None:  # nothing depends on the image: ask the method itself
        grid = geometry.window_grid(BLOCK)
        plan = schedule.method.plan(None, grid, 1)
    else:
        plan, grid = decisions[key].plan, geometry.window_grid(int(key.split(".")[1]))
    made = token_map(ready, photo.image, plan.token_groups(grid))
    return with_prompts(resize(made, photo.image.shape), photo.prompts[:1]) if aware else made


def resize(image, shape):
    """An image at the size of another one."""
    import numpy as np
    from PIL import Image

    return np.asarray(Image.fromarray(image).resize((shape[1], shape[0])))


def save(path: Path, shots) -> None:
    """Images side by side with captions, as one JPEG."""
    from PIL import Image, ImageDraw, ImageFont

    images = [Image.fromarray(shot) for shot in shots.values()]
    height = round(SIDE * images[0].height / images[0].width)
    sheet = Image.new("RGB", (len(images) * (SIDE + 6) - 6, height + 22), "white")
    pen, font = ImageDraw.Draw(sheet), ImageFont.load_default(14)
    for i, (caption, image) in enumerate(zip(shots, images)):
        sheet.paste(image.resize((SIDE, height), Image.Resampling.LANCZOS), (i * (SIDE + 6), 22))
        pen.text((i * (SIDE + 6) + 2, 3), caption, fill="black", font=font)
    sheet.save(path, quality=85)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--table", action="store_true", help="only the README's table")
    arguments = parser.parse_args()
    table()
    if not arguments.table:
        pictures()
