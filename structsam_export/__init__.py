"""structsam-export: a Segment Anything checkpoint in, a faster and verified engine out.

Names are resolved on first use, so that importing the package (and `structsam-export --help`) loads nothing heavy.
"""

from __future__ import annotations

from importlib import import_module
from typing import Any

__version__ = "0.1.0"

_NAMES = {
    "ExportConfig": "structsam_export.config",
    "MergePlan": "structsam_export.methods.plan",
    "Predictor": "structsam_export.runtime.predictor",
    "StructSAMError": "structsam_export.errors",
    "apply_patch": "structsam_export.patch",
    "export": "structsam_export.pipeline",
    "load_model": "structsam_export.models",
    "make_method": "structsam_export.methods",
    "patched": "structsam_export.patch",
    "remove_patch": "structsam_export.patch",
}

__all__ = [
    "ExportConfig",
    "MergePlan",
    "Predictor",
    "StructSAMError",
    "__version__",
    "apply_patch",
    "export",
    "load_model",
    "make_method",
    "patched",
    "remove_patch",
]


def __getattr__(name: str) -> Any:
    if name in _NAMES:
        return getattr(import_module(_NAMES[name]), name)
    raise AttributeError(f"module 'structsam_export' has no attribute '{name}'")
