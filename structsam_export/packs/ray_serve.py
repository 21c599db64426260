"""Pack: an application for Ray Serve: encoders that batch, decoders in replicas, and a handle to each embedding."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from structsam_export.packs.base import Limits, Option, Pack
from structsam_export.packs.copied import OURS, copy_program, copy_runtime
from structsam_export.packs.described import described
from structsam_export.packs.graphs import Core

if TYPE_CHECKING:
    from structsam_export.packs.base import Source

PROGRAMS = ("app", "client", "measure")


class RayServe(Pack):
    """`app.py` and its configuration."""

    NAME = "ray"
    TITLE = "app.py, config.yaml, encoder.onnx, decoder.onnx, client.py, measure.py"
    CLIENTS = "clients of Ray Serve"
    LIMITS = Limits(sizes=None, batches=True, preprocessing=OURS)
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "device": Option(("cpu", "gpu"), "What replicas compute on; gpu: ONNX Runtime with CUDA.")
    }

    def refusal(self, source: Source) -> str | None:
        if (found := super().refusal(source)) is None and self.options["device"] == "gpu":
            form = source.folder.config.form
            if form == "ort-cpu":
                return "--form ort-cpu has operators that only the CPU has. Export without it, or pack --device cpu."
        return found

    def write(self, source: Source, folder: Path) -> None:
        # CPUs have no kernels for graphs in lower precisions.
        on_cpu = self.options["device"] == "cpu"
        encoder = Core.read(source.folder.fp32_encoder()) if on_cpu else source.core("encoder")
        for part, core in (("encoder", encoder), ("decoder", source.core("decoder"))):
            described(core, part).save(folder / f"{part}.onnx", source.facts())
        about = {
            "image_size": source.size,
            "preprocessing": source.folder.preprocessing,
            "mask_side": source.mask_side,
            "batch": source.folder.config.batch,
            "device": self.options["device"],
            "threads": 1,
        }
        (folder / "sam.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        text = self.page("config.yaml.j2", source, folder.name, "ray_files")
        (folder / "config.yaml").write_text(text, encoding="utf-8")
        for name in PROGRAMS:
            copy_program("ray_files", name, folder / f"{name}.py")
        copy_runtime(folder)
