"""An export folder in use: photos and prompts in, masks out. NumPy and a backend, no PyTorch.

    from structsam_export.runtime import Predictor

    predictor = Predictor("engines/demo-structsam-r50-fp16")
    predictor.set_image(image)
    masks, scores, low_res = predictor.predict(point_coords, point_labels)

Names are resolved on first use.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

_NAMES = {
    "AutomaticMaskGenerator": "structsam_export.runtime.automatic",
    "EmbeddedImage": "structsam_export.runtime.embedded",
    "Predictor": "structsam_export.runtime.predictor",
    "ResizeLongestSide": "structsam_export.runtime.transforms",
    "RunOptions": "structsam_export.backends.base",
    "read_image": "structsam_export.runtime.pictures",
}

__all__ = ["AutomaticMaskGenerator", "EmbeddedImage", "Predictor", "ResizeLongestSide", "RunOptions", "read_image"]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'structsam_export.runtime' has no attribute '{name}'")
