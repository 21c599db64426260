"""`SamPredictor` on a patched model, and pictures and prompts to compare other predictors with it on."""

from __future__ import annotations

from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image

import structsam_export
from structsam_export.folder import ExportFolder
from structsam_export.job import Job

PHOTOS = Path(structsam_export.__file__).parent / "assets" / "photos"
ORIENTATION = 0x0112
# Logits nearer to the threshold than this share of the largest may fall on either side of it: so do those of the same
# operators in another order, in PyTorch.
ROUNDING = 1e-5


@contextmanager
def sam_predictor(folder):
    """SAM's own predictor on the model that a folder was exported from, patched as it was exported."""
    from segment_anything import SamPredictor

    job = Job.of_folder(ExportFolder.read(Path(folder)))
    with job.schedule.patched(job.loaded.sam.image_encoder):
        yield SamPredictor(job.loaded.sam)


def pictures(folder):
    """Ten picture files of unlike sizes and kinds: name -> path."""
    folder.mkdir()
    coffee, cat = (Image.open(PHOTOS / f"{name}.jpg").convert("RGB") for name in ("coffee", "chelsea"))
    exif = Image.Exif()
    exif[ORIENTATION] = 6  # turned by a quarter
    grey = np.asarray(Image.open(PHOTOS / "camera.jpg").convert("L"))
    transparent = cat.copy()
    transparent.putalpha(Image.linear_gradient("L").resize(cat.size))
    made = {
        "odd.png": coffee.resize((501, 333)),
        "portrait.png": coffee.crop((150, 0, 350, 400)),
        "one-pixel-wide.png": cat.crop((200, 0, 201, 200)),
        "grey.png": Image.fromarray(grey),
        "rgba.png": transparent,
        "16-bit.png": Image.fromarray(grey.astype(np.uint16) * 200 + np.arange(grey.shape[1], dtype=np.uint16)),
        "exif.jpg": cat,
        "large.png": coffee.resize((1500, 1001)),
        "small.png": cat.resize((37, 23)),
        "square.png": coffee.resize((512, 512)),
    }
    for name, image in made.items():
        image.save(folder / name, **({"exif": exif} if name == "exif.jpg" else {}))
    return {name: folder / name for name in made}


def random_prompt(rng, shape):
    """Arguments of `predict`: points of both kinds, a box, or both; coordinates in pixels of a photo of `shape`."""
    h, w = shape
    kind = rng.choice(["point", "points", "negatives", "box", "box and points"])
    prompt = {}
    if kind != "box":
        count = 1 if kind == "point" else int(rng.integers(2, 6))
        labels = np.ones(count, int) if kind in ("point", "points") else rng.integers(0, 2, count)
        if kind == "negatives":
            labels[0] = 1
        prompt |= {"point_coords": rng.uniform(0, 1, (count, 2)) * (w, h), "point_labels": labels}
    if kind.startswith("box"):
        corners = np.sort(rng.uniform(0, 1, (2, 2)), axis=0) * (w, h)
        prompt["box"] = corners.reshape(4)
    return prompt | {"multimask_output": bool(rng.integers(2))}


class Comparison:
    """How far two predictors are apart. `ious` counts every pixel; none may differ but those on the threshold."""

    def __init__(self):
        self.worst_logits, self.worst_guess, self.flips, self.ious = 0.0, 0.0, 0, []

    def add(self, wanted, found, logits):
        """Results of both, and the first one's logits in the photo's size."""
        for a, b in zip(wanted, found):
            assert a.shape == b.shape and a.dtype == b.dtype, (a.shape, b.shape, a.dtype, b.dtype)
        masks, guesses, low = wanted
        scale = abs(low).max()
        self.worst_logits = max(self.worst_logits, float(abs(low - found[2]).max() / scale))
        self.worst_guess = max(self.worst_guess, float(abs(guesses - found[1]).max()))
        for mask, other, values in zip(masks, found[0], logits):
            differ = mask != other
            assert not differ.any() or abs(values[differ]).max() <= ROUNDING * scale
            self.flips += int(differ.sum())
            union = (mask | other).sum()
            self.ious.append(float((mask & other).sum() / union) if union else 1.0)

    def __str__(self):
        below = sum(iou < 0.9999 for iou in self.ious)
        return (
            f"{len(self.ious)} masks: IoU mean {np.mean(self.ious):.7f} min {min(self.ious):.6f}, {below} below .9999; "
            f"{self.flips} pixels differ, all on the threshold; low-res logits {self.worst_logits:.1e} of the largest, "
            f"IoU guesses {self.worst_guess:.1e}"
        )


def compare(sam, every, image, prompts, rng, found=None):
    """Run prompts through SAM's predictor and each of `every`; every third again with the mask it gave."""
    found = found or [Comparison() for _ in every]
    sam.set_image(image)
    for ours in every:
        ours.set_image(image)
        assert (ours.original_size, ours.input_size) == (sam.original_size, sam.input_size)

    def run(prompt):
        logits, guesses, low = sam.predict(**prompt, return_logits=True)
        wanted = logits > sam.model.mask_threshold, guesses, low
        for ours, comparison in zip(every, found):
            comparison.add(wanted, ours.predict(**prompt), logits)
        return low[guesses.argmax()][None]

    for i in range(prompts):
        prompt = random_prompt(rng, image.shape[:2])
        mask = run(prompt)
        if i % 3 == 0:
            run(prompt | {"mask_input": mask})
    return found
