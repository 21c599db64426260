"""Pack: a decoder as nanosam's predictor feeds its engines, and the encoder beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from structsam_export.packs.base import Limits, Pack
from structsam_export.packs.classic import ABOUT, IOU, LOW_RES, nchw_encoder, prompt_inputs
from structsam_export.packs.graphs import ClientGraph

if TYPE_CHECKING:
    from structsam_export.packs.base import Source


class NanoSAM(Pack):
    """ONNX files for trtexec; engines are built on the device."""

    NAME = "nanosam"
    TITLE = "image_encoder.onnx, mask_decoder.onnx for trtexec and nanosam's Predictor"
    CLIENTS = "nanosam and jetson-containers"
    RUNTIME = "TensorRT"
    LIMITS = Limits(
        precisions=("fp32", "fp16", "bf16"),
        forms=("portable", "attention"),
        why_form="nanosam runs TensorRT engines, and this form is for another runtime.",
    )

    def write(self, source: Source, folder: Path) -> None:
        nchw_encoder(source, "image_encoder", "image").save(folder / "image_encoder.onnx", source.facts())
        mask_decoder(source).save(folder / "mask_decoder.onnx", source.facts())


def mask_decoder(source: Source) -> ClientGraph:
    """One prompt a call; nanosam passes pointers to float32, so every input is that; IoUs come first."""
    graph = ClientGraph("mask_decoder", ABOUT)
    found = graph.run(source.core("decoder"), "decoder", prompt_inputs(graph, source, 1))
    side = source.mask_side
    graph.output("iou_predictions", found["iou_predictions"], [1, 4], IOU)
    graph.output("low_res_masks", found["low_res_masks"], [1, 4, side, side], LOW_RES)
    return graph
