"""The decoder as `segment_anything.utils.onnx.SamOnnxModel` exports it: what every program for SAM's ONNX files feeds.

All inputs are float32; its masks are those of the photo's own size. Written from that contract; the decoder inside is
the export's own. Three things are more forgiving than the original, and change nothing that it can compute:

* a mask input that is switched off (`has_mask_input` <= 0, osam sends -1) cannot reach the masks, whatever it holds;
* prompts P are free;
* a side of the photo that would be resized to nothing becomes one pixel.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from structsam_export.packs.graphs import FLOAT, INT64, ClientGraph

if TYPE_CHECKING:
    from structsam_export.packs.base import Source

LABELS = (
    "1 foreground, 0 background, 2 and 3 upper left and lower right corner of a box, -1 padding point. A prompt "
    "without a box ends with exactly one point (0, 0) of label -1, as SamPredictor adds it: the point has an embedding "
    "of its own and is not neutral"
)
COORDS = (
    "x, y in pixels of the resized image, from the upper left corner; the graph adds the half pixel and normalises. "
    "Prompts of one call have the same K"
)
MASK = "logits of an earlier mask; not read where has_mask_input is 0"
HAS_MASK = "1: use mask_input, 0 or less: do not"
EMBEDDING = "of one image, from the encoder beside"
SIZE = "height, width of the photo in pixels"
LOW_RES = "logits, object above 0, on the square of the resized and padded image"
IOU = "the model's own guess of each mask's IoU"
MASKS = "logits of the photo's size, object above 0"
IMAGE = (
    "RGB, longest side resized to S, minus (123.675, 116.28, 103.53), over (58.395, 57.12, 57.375), then zeros to the "
    "right and below"
)
ABOUT = (
    "Prompt encoder and mask decoder of Segment Anything. Points are in pixels of the resized image; a prompt without "
    "a box ends with one point (0, 0) of label -1; logits above 0 are the object."
)


def nchw_encoder(source: Source, name: str, image: str) -> ClientGraph:
    """The export's encoder for one prepared image; `name` is the graph's, `image` its input's."""
    size = source.size
    graph = ClientGraph(name, f"Image encoder of Segment Anything for square images of {size} px.")
    prepared = graph.input(image, FLOAT, [1, 3, size, size], IMAGE)
    found = graph.run(source.core("encoder"), "encoder", {"image": prepared})
    graph.output("image_embeddings", found["image_embeddings"], source.embedding, "for the decoder beside")
    return graph


def prompt_inputs(graph: ClientGraph, source: Source, prompts: int | str, *, embeddings: bool = True) -> dict[str, str]:
    """The classic inputs up to `has_mask_input`, and what the export's decoder takes instead.

    Args:
        graph: gets the inputs.
        source: the export.
        prompts: P, or a name for it.
        embeddings: whether `image_embeddings` is an input.

    Returns:
        Inputs of the export's decoder -> tensors, `image_embeddings` only where it is an input.
    """
    side = source.mask_side
    feeds = {}
    if embeddings:
        feeds["image_embeddings"] = graph.input("image_embeddings", FLOAT, source.embedding, EMBEDDING)
    coords = graph.input("point_coords", FLOAT, [prompts, "num_points", 2], COORDS)
    labels = graph.input("point_labels", FLOAT, [prompts, "num_points"], f"{LABELS}; whole numbers")
    mask = graph.input("mask_input", FLOAT, [1, 1, side, side], MASK)
    has = graph.input("has_mask_input", FLOAT, [1], HAS_MASK)
    return feeds | {
        "point_coords": coords,
        "point_labels": graph.cast(graph.op("Round", labels), INT64),
        **mask_feeds(graph, coords, mask, has),
    }


def mask_feeds(graph: ClientGraph, coords: str, mask: str, has: str) -> dict[str, str]:
    """Mask inputs for the export's decoder, one for each prompt: NaN in a mask that is switched off stays outside."""
    used = graph.op("Greater", has, graph.constant(0, FLOAT))
    masks = graph.op("Where", used, mask, graph.constant(0, FLOAT))
    count = graph.op("Shape", coords, start=0, end=1)
    shape = graph.op("Concat", count, graph.constant([1, 1, 1]), axis=0)
    return {"mask_input": graph.op("Expand", masks, shape), "has_mask_input": graph.cast(used, FLOAT)}


def single_mask(graph: ClientGraph, coords: str, logits: str, ious: str) -> tuple[str, str]:
    """SAM's choice of one mask (P, 1, ...) of four: the largest of iou + (K - 2.5) * [1000, 0, 0, 0].

    So one point with its padding point gives the best of the three ambiguous masks, more points the single one.
    """
    points = graph.cast(graph.op("Shape", coords, start=1, end=2), FLOAT)
    more = graph.op("Sub", points, graph.constant(2.5, FLOAT))
    reweight = graph.op("Mul", more, graph.constant([[1000, 0, 0, 0]], FLOAT))
    best = graph.op("ArgMax", graph.op("Add", ious, reweight), axis=1, keepdims=1)
    place = graph.op("Unsqueeze", best, graph.constant([2, 3]))
    size = graph.op("Shape", logits, start=2, end=4)
    shape = graph.op("Concat", graph.op("Shape", best), size, axis=0)
    index = graph.op("Expand", place, shape)
    return graph.op("GatherElements", logits, index, axis=1), graph.op("GatherElements", ious, best, axis=1)


def resized_size(graph: ClientGraph, original: str, size: int, rounding: float) -> str:
    """(2,) int64: height and width of the resized photo, floor(size / longest side * side + rounding), at least 1."""
    scale = graph.op("Div", graph.constant(size, FLOAT), graph.op("ReduceMax", original, keepdims=0))
    scaled = graph.op("Add", graph.op("Mul", original, scale), graph.constant(rounding, FLOAT))
    whole = graph.cast(graph.op("Floor", scaled), INT64)
    return graph.op("Max", whole, graph.constant([1, 1]))


def photo_masks(graph: ClientGraph, logits: str, resized: str, original: str, size: int) -> str:
    """Logits (P, M, 4h, 4w) on the photo: enlarged to the square, cropped to the resized photo, resized to its size."""

    def linear(value: str, sizes: str) -> str:
        return graph.op("Resize", value, "", "", sizes, mode="linear", coordinate_transformation_mode="half_pixel")

    count = graph.op("Shape", logits, start=0, end=2)
    square = linear(logits, graph.op("Concat", count, graph.constant([size, size]), axis=0))
    crop = graph.op("Slice", square, graph.constant([0, 0]), resized, graph.constant([2, 3]))
    return linear(crop, graph.op("Concat", count, graph.cast(original, INT64), axis=0))


def classic_outputs(
    graph: ClientGraph, source: Source, found: dict[str, str], coords: str, masks: str, rounding: float = 0.5
) -> None:
    """`orig_im_size` in; `masks`, `iou_predictions`, `low_res_masks` out, in this order.

    Args:
        graph: gets them.
        source: the export.
        found: outputs of the export's decoder -> tensors.
        coords: `point_coords`.
        masks: "1" or "4" masks a prompt.
        rounding: added before sizes are floored, as the program resizes photos.
    """
    original = graph.input("orig_im_size", FLOAT, [2], SIZE)
    logits, ious = found["low_res_masks"], found["iou_predictions"]
    if masks == "1":
        logits, ious = single_mask(graph, coords, logits, ious)
    resized = resized_size(graph, original, source.size, rounding)
    full = photo_masks(graph, logits, resized, original, source.size)
    prompts, number, side = "num_prompts", int(masks), source.mask_side
    graph.output("masks", full, [prompts, number, "height", "width"], MASKS)
    graph.output("iou_predictions", ious, [prompts, number], IOU)
    graph.output("low_res_masks", logits, [prompts, number, side, side], LOW_RES)


def classic_decoder(graph: ClientGraph, source: Source, masks: str) -> None:
    """The whole decoder."""
    feeds = prompt_inputs(graph, source, "num_prompts")
    found = graph.run(source.core("decoder"), "decoder", feeds)
    classic_outputs(graph, source, found, feeds["point_coords"], masks)


def hwc_image(graph: ClientGraph, image: str, size: int) -> str:
    """(height, width, 3) RGB of 0 to 255, no larger than `size` -> (1, 3, size, size), normalised, then padded."""
    from structsam_export.runtime.images import PIXEL_MEAN, PIXEL_STD

    centred = graph.op("Sub", image, graph.constant(PIXEL_MEAN, FLOAT))
    planes = graph.op("Transpose", graph.op("Div", centred, graph.constant(PIXEL_STD, FLOAT)), perm=[2, 0, 1])
    missing = graph.op("Sub", graph.constant([size, size]), graph.op("Shape", planes, start=1, end=3))
    pads = graph.op("Concat", graph.constant([0, 0, 0, 0]), missing, axis=0)
    return graph.op("Reshape", graph.op("Pad", planes, pads), graph.constant([1, 3, size, size]))
