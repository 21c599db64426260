"""The main job on the bundled model, made once for all tests of a run that look at its files or continue from them."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from unittest import mock

from shared_traces import sharing
from trace_cache import cached_file

from structsam_export.config import ExportConfig
from structsam_export.pipeline import export
from structsam_export.validate import latency

PHOTOS = Path(str(resources.files("structsam_export"))) / "assets" / "photos"
# The default, all seven, is what test_low_precision_passes_its_gates_and_builds validates on.
FEW_PHOTOS = (str(PHOTOS / "coffee.jpg"),)


def demo_export() -> Path:
    """Folder of a full export: structsam .5, FP32, TensorRT-RTX engines for sm86. To be copied, not changed."""

    def make(place: Path) -> None:
        config = ExportConfig(rate=0.5, precision="fp32", backend="tensorrt-rtx", target="sm86", images=FEW_PHOTOS)
        with sharing(), mock.patch.object(latency, "ROUNDS", 1):
            export(config, place)

    return cached_file("demo-structsam-fp32", make)
