"""Pack: SAM's classic ONNX files, for samexporter, osam, segment-anything-onnx and whoever reads the same."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from structsam_export.packs.base import Option, Pack
from structsam_export.packs.classic import ABOUT, classic_decoder, hwc_image, nchw_encoder
from structsam_export.packs.graphs import FLOAT, ClientGraph

if TYPE_CHECKING:
    from structsam_export.packs.base import Source

MASKS = Option(("1", "4"), "Masks of a prompt in the decoder: SAM's choice, or all four.")


class Meta(Pack):
    """`encoder.onnx` and `decoder.onnx`."""

    NAME = "meta"
    TITLE = "encoder.onnx, decoder.onnx as segment_anything's own export writes them"
    CLIENTS = "samexporter, osam and segment-anything-onnx"
    OPTIONS: ClassVar[Mapping[str, Option]] = {
        "input": Option(("nchw", "hwc"), "Encoder input: normalised and padded (1, 3, S, S), or the resized photo."),
        "masks": MASKS,
    }

    def write(self, source: Source, folder: Path) -> None:
        # osam takes an input of this name only, others any.
        encoder = hwc_encoder(source) if self.options["input"] == "hwc" else nchw_encoder(source, "encoder", "x")
        encoder.save(folder / "encoder.onnx", source.facts())
        decoder(source, self.options["masks"]).save(folder / "decoder.onnx", source.facts())


def hwc_encoder(source: Source) -> ClientGraph:
    """The encoder for the resized photo itself: normalising and padding are in the graph."""
    graph = ClientGraph("encoder", f"Image encoder of Segment Anything for photos resized to at most {source.size} px.")
    about = f"RGB, 0 to 255, resized so that the longest side is {source.size}; no side may be longer"
    image = graph.input("input_image", FLOAT, ["image_height", "image_width", 3], about)
    found = graph.run(source.core("encoder"), "encoder", {"image": hwc_image(graph, image, source.size)})
    graph.output("image_embeddings", found["image_embeddings"], source.embedding, "for the decoder beside")
    return graph


def decoder(source: Source, masks: str) -> ClientGraph:
    """The decoder with post-processing."""
    graph = ClientGraph("decoder", ABOUT)
    classic_decoder(graph, source, masks)
    return graph
