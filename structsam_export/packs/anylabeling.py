"""Pack: a model that AnyLabeling and X-AnyLabeling load as "custom model"."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from structsam_export.packs.base import Option, Pack
from structsam_export.packs.meta import decoder, hwc_encoder

if TYPE_CHECKING:
    from structsam_export.packs.base import Source

# The canvas that both programs send: 684 x 1024, whatever the photo. `max_height` is what their own files say.
MAX_WIDTH, MAX_HEIGHT = 1024, 682


class AnyLabeling(Pack):
    """`config.yaml` with the two graphs it names."""

    NAME = "anylabeling"
    TITLE = "config.yaml, NAME.encoder.onnx, NAME.decoder.onnx"
    CLIENTS = "AnyLabeling and X-AnyLabeling"
    OPTIONS: ClassVar[Mapping[str, Option]] = {}

    def write(self, source: Source, folder: Path) -> None:
        name = model_name(source)
        files = {part: f"{name}.{part}.onnx" for part in ("encoder", "decoder")}
        hwc_encoder(source).save(folder / files["encoder"], source.facts())
        decoder(source, "1").save(folder / files["decoder"], source.facts())
        config = {
            "type": "segment_anything",
            "name": name,
            "display_name": f"Segment Anything ({source.name})",
            "encoder_model_path": files["encoder"],
            "decoder_model_path": files["decoder"],
            "input_size": source.size,
            "max_width": MAX_WIDTH,
            "max_height": MAX_HEIGHT,
        }
        lines = [f"{key}: {json.dumps(value)}" for key, value in config.items()]  # JSON's scalars are YAML's
        (folder / "config.yaml").write_text("\n".join(lines) + "\n", encoding="utf-8")


def model_name(source: Source) -> str:
    """The export's name in the characters that X-AnyLabeling takes."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", source.name)
