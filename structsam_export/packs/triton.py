"""Pack: a model repository for NVIDIA's Triton Inference Server.

Five models: `sam_encoder` and `sam_decoder` are the export's graphs or engines; `sam_preprocess` prepares photos;
`sam_embed` chains it with the encoder; `sam` answers prompts on photos with masks. The Python models run this
package's own code for photos and prompts, copied beside them, so that masks are `Predictor`'s.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from structsam_export.errors import UsageError
from structsam_export.folder import companion
from structsam_export.packs import triton_config as configs
from structsam_export.packs.base import Limits, Option, Pack
from structsam_export.packs.copied import OURS, copy_program, copy_runtime
from structsam_export.packs.described import Signature, described
from structsam_export.packs.graphs import Core
from structsam_export.packs.pbtxt import text

if TYPE_CHECKING:
    from structsam_export.backends.base import Engine
    from structsam_export.packs.base import Source

ENGINES = {"tensorrt": "model.plan", "openvino": "model.xml"}  # backends that run engines, and Triton's name for them


class Triton(Pack):
    """`models/` and a client."""

    NAME = "triton"
    TITLE = "models/ (sam, sam_embed, sam_encoder, sam_decoder, sam_preprocess), client.py"
    CLIENTS = "clients of Triton Inference Server"
    RUNTIME = "ONNX Runtime in Triton"
    LIMITS = Limits(sizes=None, precisions=("fp32", "fp16", "bf16"), batches=True, preprocessing=OURS)
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "backend": Option(
            ("onnxruntime", "tensorrt", "openvino", "python"),
            "What runs encoder and decoder in Triton; python: ONNX Runtime in its Python backend.",
        )
    }

    def refusal(self, source: Source) -> str | None:
        config, backend = source.folder.config, self.options["backend"]
        if config.precision == "bf16" and backend == "onnxruntime":
            return "ONNX Runtime runs no BF16. Use --backend tensorrt, or export with --precision fp16."
        if (found := super().refusal(source)) is None and backend in ENGINES:
            try:
                engine(source, backend, "encoder")
            except UsageError as error:
                return str(error)
        return found

    def write(self, source: Source, folder: Path) -> None:
        backend, batch, models = self.options["backend"], source.folder.config.batch, folder / "models"
        encoder = Core.read(source.folder.fp32_encoder()) if backend == "python" else source.core("encoder")
        decoder = source.core("decoder")
        every = configs.encoder_configs(backend, Signature.of(encoder), batch)
        every["sam_decoder"] = configs.decoder_config(backend, Signature.of(decoder))
        every |= configs.front_configs(source)
        for name, config in every.items():
            (models / name / "1").mkdir(parents=True)
            (models / name / "config.pbtxt").write_text(text(config), encoding="utf-8")
        graphs = {"sam_encoder" if batch == 1 else "sam_encoder_fixed": encoder, "sam_decoder": decoder}
        for name, core in graphs.items():
            part = "decoder" if core is decoder else "encoder"
            write_graph(source, backend, part, core, models / name / "1")
        if batch > 1:
            copy_model("batches", models / "sam_encoder" / "1")
        for model, file in {"sam_preprocess": "preprocess", "sam": "sam"}.items():
            copy_model(file, models / model / "1")
            copy_runtime(models / model / "1")
        # An ensemble has no files, but Triton wants its version's folder, and copies lose empty ones.
        (models / "sam_embed" / "1" / "README").write_text("Version 1 of this ensemble.\n", encoding="utf-8")
        copy_model("client", folder, "client.py")


def engine(source: Source, backend: str, part: str) -> Engine:
    """The engine of a part that was built last.

    Raises:
        UsageError: there is none.
    """
    found = [e for e in source.folder.manifest.engines if (e.backend, e.part) == (backend, part)]
    if not found:
        raise UsageError(
            f"it has no {backend} engine. Where it will run: structsam-export build {source.folder.path} "
            f"--backend {backend}"
        )
    return found[-1]


def write_graph(source: Source, backend: str, part: str, core: Core, place: Path) -> None:
    """The files of an encoder or decoder, under the names that Triton's backends look for."""
    if backend not in ENGINES:
        if backend == "python":
            copy_model("onnx_graph", place)
        described(core, part).save(place / "model.onnx", source.facts())
        return
    path, target = source.folder.verified(engine(source, backend, part).file), place / ENGINES[backend]
    beside, name = companion(path.name), companion(target.name)
    if beside and not name and path.with_name(beside).exists():
        raise UsageError(
            f"{path} needs the plugins in {beside}, which packs for Triton cannot carry. Build it again without "
            "--plugin-library."
        )
    shutil.copyfile(path, target)
    if beside and name and path.with_name(beside).exists():
        shutil.copyfile(path.with_name(beside), target.with_name(name))


def copy_model(name: str, place: Path, target: str = "model.py") -> None:
    """One of the Python models."""
    copy_program("triton_models", name, place / target)
