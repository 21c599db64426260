"""Draws a `Comparison`: three panels side by side, each with a title and two lines of caption."""

from __future__ import annotations

import numpy as np
from overview.comparison import METHOD, RATE, Comparison
from overview.package import COLOURS
from PIL import Image, ImageDraw, ImageFont

# In pixels of the file, which pages show at half its width.
PANEL, GAP, CAPTION = 596, 6, 122
ORANGE, INK, GREY = COLOURS[0], (20, 20, 20), (70, 70, 70)
TITLE_SIZE, TEXT_SIZE = 31, 26


def sheet(found: Comparison) -> Image.Image:
    """The whole picture."""
    panels = (merged_tokens(found), with_masks(found, found.plain), with_masks(found, found.merged))
    made = Image.new("RGB", (3 * PANEL + 2 * GAP, panels[0].height + CAPTION), "white")
    pen = ImageDraw.Draw(made)
    for i, (panel, (title, *lines)) in enumerate(zip(panels, captions(found))):
        x = i * (PANEL + GAP)
        made.paste(panel, (x, CAPTION))
        pen.text((x + 2, 4), title, fill=INK, font=ImageFont.load_default(TITLE_SIZE))
        for k, line in enumerate(lines):
            pen.text((x + 2, 48 + 34 * k), line, fill=GREY, font=ImageFont.load_default(TEXT_SIZE))
    return made


def captions(found: Comparison) -> tuple[tuple[str, str, str], ...]:
    """Title and two lines for each panel."""
    before, after = (macs / 1e9 for macs in found.macs)
    plain, merged = found.accuracy
    return (
        (
            "Tokens merge where the photo is flat",
            f"one block: {found.groups.size:,} tokens become {len(np.unique(found.groups))} (rate {RATE:g})",
            "orange: four tokens averaged into one",
        ),
        ("Masks of the plain model", f"encoder: {before:.2f} billion MACs", f"IoU with the true masks: {plain:.3f}"),
        (
            f"Masks with merged tokens ({METHOD})",
            f"encoder: {1 - after / before:.1%} fewer MACs",
            f"IoU: {merged:.3f} with true, {found.agreement:.3f} with plain masks",
        ),
    )


def enlarged(image: np.ndarray) -> Image.Image:
    """A picture (h, w, 3) uint8, PANEL px wide."""
    height = round(PANEL * image.shape[0] / image.shape[1])
    return Image.fromarray(image).resize((PANEL, height), Image.Resampling.LANCZOS)


def merged_tokens(found: Comparison) -> Image.Image:
    """The photo; cells that merge are painted in their mean colour and outlined."""
    picture = enlarged(found.image)
    pen, pixels = ImageDraw.Draw(picture), np.asarray(picture, float)
    token = max(picture.size) / max(found.groups.shape)
    for group, count in zip(*np.unique(found.groups, return_counts=True)):
        ys, xs = np.nonzero(found.groups == group)
        x0, x1 = round(xs.min() * token), round((xs.max() + 1) * token)
        y0, y1 = round(ys.min() * token), round((ys.max() + 1) * token)
        inside = pixels[y0:y1, x0:x1]
        if count > 1 and inside.size:
            mean = tuple(int(c) for c in inside.reshape(-1, 3).mean(0))
            pen.rectangle((x0, y0, x1, y1), fill=mean, outline=ORANGE, width=2)
    return picture


def with_masks(found: Comparison, masks: np.ndarray) -> Image.Image:
    """The photo with every mask tinted in a colour of its own."""
    pixels = found.image.astype(float)
    for i, mask in enumerate(masks):
        pixels[mask] = 0.4 * pixels[mask] + 0.6 * np.array(COLOURS[i % len(COLOURS)])
    return enlarged(pixels.clip(0, 255).astype(np.uint8))
