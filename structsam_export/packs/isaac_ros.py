"""Pack: a model repository for NVIDIA Isaac ROS Segment Anything, encoder and decoder in one graph.

Its node resizes photos to int(side * scale), pads them with black and normalises afterwards, so that pads are -mean/std
where SAM has zeros. The graph knows the photo's size and puts the zeros back: exactly SAM's input. Masks are cropped to
the same floored size.
"""

from __future__ import annotations

from itertools import starmap
from pathlib import Path
from typing import TYPE_CHECKING

from structsam_export.packs.base import Limits, Pack
from structsam_export.packs.classic import ABOUT, classic_outputs, prompt_inputs, resized_size
from structsam_export.packs.graphs import FLOAT, ClientGraph

if TYPE_CHECKING:
    from structsam_export.packs.base import Source

MODEL = "segment_anything"
IMAGES = (
    "RGB, longest side resized to S and the other one floored, black to the right and below, then minus "
    "(123.675, 116.28, 103.53), over (58.395, 57.12, 57.375)"
)


class IsaacROS(Pack):
    """`models/triton/segment_anything` with `config.pbtxt` and one graph."""

    NAME = "isaac-ros"
    TITLE = "models/triton/segment_anything: config.pbtxt, 1/model.onnx"
    CLIENTS = "Isaac ROS Segment Anything"
    RUNTIME = "ONNX Runtime in Triton"
    LIMITS = Limits(
        forms=("portable", "attention"),
        why_form="Isaac ROS runs the graph on a GPU, and this form is for CPUs.",
    )

    def write(self, source: Source, folder: Path) -> None:
        place = folder / "models" / "triton" / MODEL
        (place / "1").mkdir(parents=True)
        one_graph(source).save(place / "1" / "model.onnx", source.facts())
        (place / "config.pbtxt").write_text(config(source), encoding="utf-8")


def one_graph(source: Source) -> ClientGraph:
    """Pixels and points to masks."""
    graph, size = ClientGraph(MODEL, f"Segment Anything. {ABOUT}"), source.size
    images = graph.input("images", FLOAT, [1, 3, size, size], IMAGES)
    feeds = prompt_inputs(graph, source, "num_prompts", embeddings=False)
    found = graph.run(source.core("encoder"), "encoder", {"image": zero_pads(graph, images, size)})
    embeddings = {"image_embeddings": found["image_embeddings"]}
    masks = graph.run(source.core("decoder"), "decoder", feeds | embeddings)
    classic_outputs(graph, source, masks, feeds["point_coords"], "1", rounding=0)
    return graph


def zero_pads(graph: ClientGraph, images: str, size: int) -> str:
    """Images with zeros outside the resized photo, whatever was there."""
    resized = resized_size(graph, "orig_im_size", size, 0)
    inside = []
    for axis, shape in ((0, [1, 1, size, 1]), (1, [1, 1, 1, size])):
        place = graph.op("Range", graph.constant(0), graph.constant(size), graph.constant(1))
        side = graph.op("Gather", resized, graph.constant([axis]), axis=0)
        inside.append(graph.op("Reshape", graph.op("Less", place, side), graph.constant(shape)))
    return graph.op("Where", graph.op("And", *inside), images, graph.constant(0, FLOAT))


def config(source: Source) -> str:
    """`config.pbtxt`: the batch is inside the dimensions, as the graph's is fixed."""
    size, side = source.size, source.mask_side
    inputs = {
        "images": [1, 3, size, size],
        "point_coords": [-1, -1, 2],
        "point_labels": [-1, -1],
        "mask_input": [1, 1, side, side],
        "has_mask_input": [1],
        "orig_im_size": [2],
    }
    outputs = {"masks": [-1, -1, -1, -1], "iou_predictions": [-1, 1], "low_res_masks": [-1, 1, -1, -1]}

    def tensors(kind: str, shapes: dict[str, list[int]]) -> str:
        row = '  {{\n    name: "{}"\n    data_type: TYPE_FP32\n    dims: {}\n  }}'
        rows = ",\n".join(starmap(row.format, shapes.items()))
        return f"{kind} [\n{rows}\n]\n"

    head = f'name: "{MODEL}"\nplatform: "onnxruntime_onnx"\nmax_batch_size: 0\n'
    return head + tensors("input", inputs) + tensors("output", outputs)
