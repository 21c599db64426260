"""Pack: a kit that builds engines on a Jetson, and proves there that they draw the export's masks."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from structsam_export.fused import chosen, plugin_folder
from structsam_export.packs.base import Limits, Option, Pack
from structsam_export.packs.described import described

if TYPE_CHECKING:
    from structsam_export.packs.base import Source

RUNNER = (
    *("CMakeLists.txt", "main.cpp", "steps.cpp"),
    *(f"{name}.{ending}" for name in ("engine", "pictures", "sam") for ending in ("cpp", "hpp")),
)
PHOTOS = 3  # bundled photos whose inputs and outputs are in the kit


@dataclass(frozen=True)
class Target:
    """What a JetPack has: `tensorrt`, the beginning of its version; what that does with graphs.

    `attention`: whether it reads ONNX's Attention operator; `functions`: whether it takes a plugin for a node that also
    has a local function (before 10.7 it inlines the function).
    """

    about: str
    tensorrt: str
    attention: bool
    functions: bool


TARGETS = {
    "jetpack6": Target("JetPack 6.1 and 6.2, Orin", "10.3.", False, False),
    "jetpack7": Target("JetPack 7.2.0, Orin and Thor", "10.16.", True, True),
    "jetpack7.2.2": Target("JetPack 7.2.2 and later, AGX Orin and Thor", "11.4.", True, True),
    "thor": Target("JetPack 7.0 and 7.1, Thor", "10.13.", False, True),
}


class Jetson(Pack):
    """ONNX files, scripts that build, check and measure, and what they must reproduce."""

    NAME = "jetson"
    TITLE = "encoder.onnx, decoder.onnx, build.sh, check.py, measure.sh, runner/, reference.npz"
    CLIENTS = "programs with TensorRT on Jetson"
    RUNTIME = "TensorRT"
    LIMITS = Limits(
        sizes=None,
        precisions=("fp32", "fp16", "bf16"),
        forms=("portable", "attention"),
        why_form="TensorRT on Jetson runs engines, and this form is for another runtime.",
    )
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "target": Option(tuple(TARGETS), "The Jetson's JetPack, which says what its TensorRT reads.")
    }

    @property
    def target(self) -> Target:
        """What the kit is for."""
        return TARGETS[self.options["target"]]

    def refusal(self, source: Source) -> str | None:
        if (found := super().refusal(source)) is not None:
            return found
        if not self.target.attention and any(n.op_type == "Attention" for n in source.core("encoder").model.graph.node):
            return (
                f"TensorRT {self.target.tensorrt}x of {self.target.about} has no Attention operator. Export with "
                "--form portable."
            )
        return None

    def write(self, source: Source, folder: Path) -> None:
        import numpy as np

        for part in ("encoder", "decoder"):
            graph = described(source.core(part), part)
            if not self.target.functions:
                graph.functions.clear()
            graph.save(folder / f"{part}.onnx", source.facts())
        if self.plugins(source):
            shutil.copytree(plugin_folder(), folder / "plugins", ignore=shutil.ignore_patterns("__pycache__", "*.pyc"))
        np.savez_compressed(folder / "reference.npz", **reference(source))
        (folder / "kit.json").write_text(json.dumps(self.kit(source), indent=2) + "\n", encoding="utf-8")
        files = resources.files("structsam_export.packs") / "jetson_files"
        for name in ("build.sh", "measure.sh"):
            text = self.page(f"{name}.j2", source, folder.name, "jetson_files")
            (folder / name).write_text(text, encoding="utf-8")
            (folder / name).chmod(0o755)
        with resources.as_file(files / "check.py") as path:
            shutil.copyfile(path, folder / "check.py")
        (folder / "runner").mkdir()
        for name in RUNNER:
            (folder / "runner" / name).write_bytes((files / "runner" / name).read_bytes())

    def plugins(self, source: Source) -> tuple[str, ...]:
        """The fused operators of an export."""
        return chosen(source.folder.config.plugins)

    def kit(self, source: Source) -> dict[str, Any]:
        """What `check.py` judges by: the gates of the export's precision.

        Merging decides by comparisons, and rounding turns some of them; whole tokens then differ, which masks hardly
        show. So where tokens merge, masks are judged and the embedding's error is told only.
        """
        from structsam_export.validate.parity import GATES

        config = source.folder.config
        gates = {name: gate for name, gate in GATES[config.precision].items() if name != "decision_agreement"}
        if config.method != "none":
            del gates["max_rel"]
        return {"target": self.options["target"], "tensorrt": self.target.tensorrt, "gates": gates, "photos": PHOTOS}


def reference(source: Source) -> dict[str, Any]:
    """Inputs and outputs of the export in FP32, on ONNX Runtime: `image.i`, `embedding.i`, ... of photo i."""
    import numpy as np

    from structsam_export.backends import backend
    from structsam_export.runtime.decoding import decoder_feed
    from structsam_export.runtime.images import prepare
    from structsam_export.runtime.photos import bundled_photos
    from structsam_export.runtime.prompts import prompt_arrays

    ort, folder = backend("onnxruntime"), source.folder
    found: dict[str, Any] = {}
    encoder, decoder = folder.fp32_encoder(), folder.onnx("decoder")
    with ort.runner(encoder, "reference encoder") as encode, ort.runner(decoder, "reference decoder") as decode:
        for i, photo in enumerate(bundled_photos(PHOTOS)):
            ready = prepare(photo.image, source.size)
            embedding = encode.infer({"image": ready.tensor})["image_embeddings"]
            coords, labels = prompt_arrays(photo.prompts, ready.scale)
            masks = decode.infer(decoder_feed(embedding, coords, labels))["low_res_masks"]
            values = {"image": ready.tensor, "embedding": embedding, "coords": coords, "labels": labels, "masks": masks}
            found |= {f"{name}.{i}": np.array(value) for name, value in values.items()}
    return found
