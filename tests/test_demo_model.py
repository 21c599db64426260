"""The bundled weights segment: masks on the bundled photos against their true masks."""

from __future__ import annotations

import numpy as np

from structsam_export.config import ExportConfig
from structsam_export.metrics import iou
from structsam_export.models import load_model
from structsam_export.runtime.photos import bundled_photos
from structsam_export.schedule import resolve
from structsam_export.validate.stages import eager_reference


def test_demo_model_finds_the_true_masks():
    loaded = load_model("demo")
    photos = bundled_photos()
    found = eager_reference(loaded, resolve(ExportConfig(), loaded.geometry), photos)
    scores, filled = [], []
    for i, photo in enumerate(photos):
        for k, prompt in enumerate(photo.prompts):
            if prompt.truth is None or prompt.box is None:
                continue
            box = np.zeros_like(prompt.truth)
            x0, y0, x1, y1 = (round(v) for v in prompt.box)
            box[y0:y1, x0:x1] = True
            scores.append(iou(found.dense.masks[i][k], prompt.truth))
            filled.append(iou(box, prompt.truth))
    assert np.mean(scores) > np.mean(filled)
    assert np.mean(scores) > 0.82


def test_weights_are_small_and_halves():
    from safetensors import safe_open

    path = load_model("demo").checkpoint
    assert path.stat().st_size <= 20_000_000
    with safe_open(path, "pt") as file:
        assert {str(file.get_tensor(k).dtype) for k in file.keys()} == {"torch.float16"}  # noqa: SIM118
