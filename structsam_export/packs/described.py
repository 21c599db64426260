"""An export's own graphs for programs that take them as they are, with words for every input and output."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from structsam_export.packs.classic import ABOUT, COORDS, EMBEDDING, HAS_MASK, IMAGE, IOU, LABELS, LOW_RES, MASK
from structsam_export.packs.graphs import ClientGraph

if TYPE_CHECKING:
    from structsam_export.packs.graphs import Core

WORDS = {
    "image": IMAGE,
    "image_embeddings": EMBEDDING,
    "point_coords": COORDS,
    "point_labels": LABELS,
    "mask_input": f"{MASK}; one for each prompt",
    "has_mask_input": HAS_MASK,
    "low_res_masks": LOW_RES,
    "iou_predictions": IOU,
}


@dataclass(frozen=True)
class Signature:
    """Inputs and outputs of a graph: name -> (NumPy type, dims; -1 is free)."""

    inputs: Mapping[str, tuple[str, list[int]]]
    outputs: Mapping[str, tuple[str, list[int]]]

    @classmethod
    def of(cls, core: Core) -> Signature:
        """As the file has them."""
        graph = core.model.graph
        return cls(*({t.name: value_of(t) for t in values} for values in (graph.input, graph.output)))


def value_of(tensor: Any) -> tuple[str, list[int]]:
    """Type and dims of an ONNX value."""
    from onnx import helper

    kind = helper.tensor_dtype_to_np_dtype(tensor.type.tensor_type.elem_type)
    return kind.name, [d.dim_value or -1 for d in tensor.type.tensor_type.shape.dim]


def described(core: Core, part: str) -> ClientGraph:
    """An export's graph as it is, with words for every input and output."""
    graph, signature = ClientGraph(f"sam_{part}", f"{part} of Segment Anything. {ABOUT}"), Signature.of(core)
    infos = [*core.model.graph.input, *core.model.graph.output]
    shapes = {t.name: [d.dim_param or d.dim_value for d in t.type.tensor_type.shape.dim] for t in infos}
    kinds = {**signature.inputs, **signature.outputs}
    feeds = {name: graph.input(name, kinds[name][0], shapes[name], WORDS[name]) for name in signature.inputs}
    found = graph.run(core, part, feeds)
    for name in signature.outputs:
        graph.output(name, found[name], shapes[name], WORDS[name])
    return graph
