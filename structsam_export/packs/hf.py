"""Pack: a Hugging Face model folder in the layout of optimum, as transformers.js loads it.

Its decoder takes no mask as a prompt, adds the padding point itself, and knows label -10: a point that is not there,
whose embedding is a zero vector. It gives the three masks of `multimask_output`.

Beyond the layout, labels 2 and 3 are a box's corners here; transformers.js hands them on untouched. A call with a box
gets no padding point, as SAM gives it none.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.errors import ArtifactError
from structsam_export.packs.base import Limits, Pack
from structsam_export.packs.classic import ABOUT, COORDS, EMBEDDING, IMAGE, IOU, LABELS, LOW_RES
from structsam_export.packs.graphs import FLOAT, INT64, ClientGraph, Core

if TYPE_CHECKING:
    import numpy as np

    from structsam_export.packs.base import Source

SUFFIX = {"fp32": "", "fp16": "_fp16"}  # what transformers.js appends for each dtype
NOT_THERE, ZERO_ROW = -10, -2  # label of a point that is not there; label of the row that is added for it


class HuggingFace(Pack):
    """`config.json`, `preprocessor_config.json` and two graphs in `onnx`."""

    NAME = "hf"
    TITLE = "config.json, preprocessor_config.json, onnx/vision_encoder.onnx, onnx/prompt_encoder_mask_decoder.onnx"
    CLIENTS = "transformers.js and optimum"
    LIMITS = Limits(sizes=None)

    def write(self, source: Source, folder: Path) -> None:
        suffix = SUFFIX[source.folder.config.precision]
        (folder / "onnx").mkdir()
        names = {"vision_encoder": vision_encoder, "prompt_encoder_mask_decoder": prompt_encoder_mask_decoder}
        beside = [
            name
            for name, graph in names.items()
            if graph(source).save(folder / "onnx" / f"{name}{suffix}.onnx", source.facts(), "{name}_data")
        ]
        for name, values in (("config", config(source, beside)), ("preprocessor_config", preprocessor(source))):
            (folder / f"{name}.json").write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def vision_encoder(source: Source) -> ClientGraph:
    """Pixels -> image embedding and, as the layout has it, the position embedding of the grid."""
    size, shape = source.size, source.embedding
    graph = ClientGraph("vision_encoder", f"Image encoder of Segment Anything for square images of {size} px.")
    image = graph.input("pixel_values", FLOAT, [1, 3, size, size], IMAGE)
    found = graph.run(source.core("encoder"), "encoder", {"image": image})
    graph.output("image_embeddings", found["image_embeddings"], shape, "for the decoder beside")
    positions = graph.constant(grid_positions(source.core("decoder"), source.geometry.grid), FLOAT)
    graph.output("image_positional_embeddings", positions, shape, "of the grid; the same for every image")
    return graph


def prompt_encoder_mask_decoder(source: Source) -> ClientGraph:
    """Points -> three masks each."""
    graph, side = ClientGraph("prompt_encoder_mask_decoder", ABOUT), source.mask_side
    embedding = graph.input("image_embeddings", FLOAT, source.embedding, EMBEDDING)
    about = "not read: the decoder holds the positions of its own grid"
    graph.input("image_positional_embeddings", FLOAT, source.embedding, about)
    shape: list[int | str] = [1, "point_batch_size", "nb_points_per_image"]
    points = graph.input("input_points", FLOAT, [*shape, 2], COORDS)
    labels = graph.input("input_labels", INT64, shape, f"{LABELS.split('. ')[0]}, -10 no point. {PADDING}")
    coords, kinds = padded(graph, *(graph.op("Squeeze", value, graph.constant([0])) for value in (points, labels)))
    count = graph.op("Shape", coords, start=0, end=1)
    empty = graph.op("Concat", count, graph.constant([1, side, side]), axis=0)
    feeds = {
        "image_embeddings": embedding,
        "point_coords": coords,
        "point_labels": kinds,
        "mask_input": graph.op("Expand", graph.constant(0, FLOAT), empty),
        "has_mask_input": graph.constant([0], FLOAT),
    }
    found = graph.run(with_zero_row(source.core("decoder")), "decoder", feeds)

    def three(value: str) -> str:
        last = graph.op("Slice", value, graph.constant([1]), graph.constant([4]), graph.constant([1]))
        return graph.op("Unsqueeze", last, graph.constant([0]))

    graph.output("iou_scores", three(found["iou_predictions"]), [1, "point_batch_size", 3], IOU)
    graph.output("pred_masks", three(found["low_res_masks"]), [1, "point_batch_size", 3, side, side], LOW_RES)
    return graph


PADDING = "The graph adds the padding point itself, unless some label is 2; calls hold boxes only, or none"


def padded(graph: ClientGraph, coords: str, labels: str) -> tuple[str, str]:
    """Points (P, K, 2) and labels (P, K) with SAM's padding point behind each prompt, unless there is a box.

    A padded copy is cut off at K where some label is 2: no branches. Label -10 becomes that of the decoder's zero row.
    """
    prompts = graph.op("Shape", coords, start=0, end=1)
    origin = graph.op("Concat", prompts, graph.constant([1, 2]), axis=0)
    beyond = graph.op("Expand", graph.constant(0, FLOAT), origin)
    pad = graph.op("Expand", graph.constant(-1), graph.op("Concat", prompts, graph.constant([1]), axis=0))
    gone = graph.op("Equal", labels, graph.constant(NOT_THERE))
    known = graph.op("Where", gone, graph.constant(ZERO_ROW), labels)
    corners = graph.cast(graph.op("Equal", labels, graph.constant(2)), INT64)
    boxes = graph.op("Reshape", graph.op("ReduceMax", corners, keepdims=0), graph.constant([1]))
    more = graph.op("Sub", graph.constant([1]), boxes)
    end = graph.op("Add", graph.op("Shape", coords, start=1, end=2), more)
    both = (graph.op("Concat", coords, beyond, axis=1), graph.op("Concat", known, pad, axis=1))
    kept = [graph.op("Slice", value, graph.constant([0]), end, graph.constant([1])) for value in both]
    return kept[0], kept[1]


def with_zero_row(core: Core) -> Core:
    """A decoder whose table of label embeddings has a zero row behind its last one, under label -2.

    The table is read at label + 1, and ONNX's Gather counts -1 from the end; labels below 0 have no position.

    Raises:
        ArtifactError: the decoder has no such table.
    """
    import numpy as np
    from onnx import ModelProto, numpy_helper

    model = ModelProto()
    model.CopyFrom(core.model)
    weights = {t.name: t for t in model.graph.initializer}
    reads = {name for node in model.graph.node for name in node.input[1:2] if node.op_type == "Gather"}
    made = {out: node for node in model.graph.node for out in node.output}
    tables = {
        node.input[0]
        for node in model.graph.node
        if node.op_type == "Gather" and node.input[0] in weights and node.input[1] in reads
        if comes_from(node.input[1], "point_labels", made)
    }
    if len(tables) != 1:
        raise ArtifactError(
            f"{core.path} has {len(tables)} tables of label embeddings, not one. Export again with --force."
        )
    tensor = weights[tables.pop()]
    table = numpy_helper.to_array(tensor, str(core.path.parent))
    tensor.CopyFrom(numpy_helper.from_array(np.concatenate([table, np.zeros_like(table[:1])]), tensor.name))
    return Core(model, core.path)


def comes_from(name: str, source: str, made: dict[str, Any]) -> bool:
    """Whether a tensor is an input, but for a few elementwise steps."""
    while name != source and name in made:
        name = made[name].input[0]
    return name == source


def grid_positions(core: Core, grid: tuple[int, int]) -> np.ndarray:
    """SAM's position embedding of a grid (1, C, h, w), from the random matrix (2, C / 2) that the decoder holds.

    Raises:
        ArtifactError: the decoder holds none, or several.
    """
    import numpy as np
    from onnx import numpy_helper

    found = [t for t in core.model.graph.initializer if len(t.dims) == 2 and t.dims[0] == 2 and t.data_type == 1]
    if len(found) != 1:
        raise ArtifactError(f"{core.path} has no matrix of position embeddings. Export again with --force.")
    matrix = numpy_helper.to_array(found[0], str(core.path.parent))
    y, x = np.meshgrid(*(2 * (np.arange(side) + 0.5) / side - 1 for side in grid), indexing="ij")
    angles = 2 * np.pi * (np.stack([x, y], -1) @ matrix.astype(float))
    return np.concatenate([np.sin(angles), np.cos(angles)], -1).transpose(2, 0, 1)[None].astype(np.float32)


def config(source: Source, beside: list[str]) -> dict[str, Any]:
    """`config.json`: sizes as `transformers`' SamConfig names them, and what transformers.js loads by default.

    Args:
        source: the export.
        beside: graphs whose weights lie in a file of their own.
    """
    g, precision = source.geometry, source.folder.config.precision
    js: dict[str, Any] = {"dtype": precision}
    if beside:
        js["use_external_data_format"] = dict.fromkeys((f"{name}{SUFFIX[precision]}.onnx" for name in beside), 1)
    return {
        "architectures": ["SamModel"],
        "model_type": "sam",
        "vision_config": {
            "model_type": "sam_vision_model",
            "image_size": g.image_size,
            "patch_size": g.patch_size,
            "hidden_size": g.dim,
            "num_hidden_layers": g.depth,
            "num_attention_heads": g.heads,
            "mlp_dim": g.mlp_dim,
            "output_channels": g.out_channels,
            "window_size": max(g.windows, default=0),
            "global_attn_indexes": list(g.global_layers),
        },
        "prompt_encoder_config": {
            "hidden_size": g.out_channels,
            "image_size": g.image_size,
            "patch_size": g.patch_size,
            "image_embedding_size": g.grid[0],
        },
        "mask_decoder_config": {"hidden_size": g.out_channels, "num_multimask_outputs": 3},
        "transformers.js_config": js,
    }


def preprocessor(source: Source) -> dict[str, Any]:
    """`preprocessor_config.json` of SamImageProcessor, for the export's size."""
    from structsam_export.runtime.images import PIXEL_MEAN, PIXEL_STD

    size, side = source.size, source.mask_side
    return {
        "image_processor_type": "SamImageProcessor",
        "processor_class": "SamProcessor",
        "do_convert_rgb": True,
        "do_normalize": True,
        "do_pad": True,
        "do_rescale": True,
        "do_resize": True,
        "image_mean": [round(mean / 255, 3) for mean in PIXEL_MEAN],
        "image_std": [round(deviation / 255, 3) for deviation in PIXEL_STD],
        "mask_pad_size": {"height": side, "width": side},
        "mask_size": {"longest_edge": side},
        "pad_size": {"height": size, "width": size},
        "resample": 2,
        "rescale_factor": 1 / 255,
        "size": {"longest_edge": size},
    }
