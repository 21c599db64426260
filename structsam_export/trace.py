"""Stage 2: torch -> ONNX.

Encoder: `image` (B, 3, S, S), and `boxes` (B, 4) if prompt-aware -> `image_embeddings` (B, C, h, w); every shape
static. The integers of each decision keep their names inside the graph (`plan.<layer>.pos`, ...), so that later
stages can be asked for the decisions they took.

Decoder: `image_embeddings` (1, C, h, w), `point_coords` (P, K, 2), `point_labels` (P, K), `mask_input`
(P, 1, 4h, 4w), `has_mask_input` (1,) -> `low_res_masks` (P, M, 4h, 4w), `iou_predictions` (P, M) with all M masks
(the first is SAM's single-mask output); P and K dynamic. A box is two points with labels 2 and 3; a prompt without
a box ends with a padding point of label -1, as SAM adds it itself.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from structsam_export.patch import host_of

if TYPE_CHECKING:
    from torch import nn

OPSET = 18


def decision_names(encoder: nn.Module) -> list[str]:
    """Tensor names of all decisions of a patched encoder, in order: "plan.3.pos", "grid.2.rows", ..."""
    return [f"{name}.{part}" for name, parts in host_of(encoder).decisions_of(encoder) for part in parts]


def encoder_with_decisions(encoder: nn.Module, history: list[Any] | None = None) -> nn.Module:
    """Wrap a (patched) encoder: image, and boxes if prompt-aware -> embedding, then the tensors of `decision_names`.

    `history` receives the decisions of each forward pass, by name.
    """
    import torch

    host, names = host_of(encoder), decision_names(encoder)

    class EncoderWithDecisions(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, image: torch.Tensor, boxes: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
            with host.prompted(encoder, boxes), host.recording(encoder) as decisions:
                embedding = self.encoder(image)
            if history is not None:
                history.append(decisions)
            tensors = {f"{name}.{part}": t for name, d in decisions.items() for part, t in d.tensors.items()}
            return embedding, *(tensors[name] for name in names)

    return EncoderWithDecisions().eval()


def decoder_for_export(sam: Any) -> nn.Module:
    """SAM's prompt encoder and mask decoder as one module with the tensor-only contract above.

    `repeat_interleave` of SAM's decoder becomes OneHot, which TensorRT cannot build; a dynamic `expand` says the same.
    """
    import torch

    class Decoder(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.prompt, self.mask = sam.prompt_encoder, sam.mask_decoder
            self.register_buffer("image_pe", sam.prompt_encoder.get_dense_pe(), persistent=False)

        def sparse(self, coords: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
            height, width = self.prompt.input_image_size
            place = (coords + 0.5) / torch.tensor([width, height], dtype=coords.dtype)
            place = self.prompt.pe_layer._pe_encoding(place)
            table = torch.cat([e.weight for e in (self.prompt.not_a_point_embed, *self.prompt.point_embeddings)])
            kind = torch.nn.functional.embedding(labels + 1, table)
            return torch.where((labels >= 0).unsqueeze(-1), place, torch.zeros_like(place)) + kind

        def forward(
            self,
            image_embeddings: torch.Tensor,
            point_coords: torch.Tensor,
            point_labels: torch.Tensor,
            mask_input: torch.Tensor,
            has_mask_input: torch.Tensor,
        ) -> tuple[torch.Tensor, torch.Tensor]:
            m = self.mask
            sparse = self.sparse(point_coords, point_labels)
            empty = self.prompt.no_mask_embed.weight.reshape(1, -1, 1, 1)
            dense = has_mask_input * self.prompt.mask_downscaling(mask_input) + (1 - has_mask_input) * empty
            tokens = torch.cat([m.iou_token.weight, m.mask_tokens.weight]).unsqueeze(0)
            tokens = torch.cat([tokens.expand(sparse.shape[0], -1, -1), sparse], 1)
            src = image_embeddings + dense
            hs, src = m.transformer(src, self.image_pe.expand(sparse.shape[0], -1, -1, -1), tokens)
            count = m.num_mask_tokens
            h, w = image_embeddings.shape[-2:]
            up = m.output_upscaling(src.transpose(1, 2).reshape(-1, image_embeddings.shape[1], h, w))
            hyper = torch.stack([m.output_hypernetworks_mlps[i](hs[:, 1 + i]) for i in range(count)], 1)
            masks = (hyper @ up.flatten(2)).reshape(-1, count, 4 * h, 4 * w)
            return masks, m.iou_prediction_head(hs[:, 0])

    return Decoder().eval()


def trace_encoder(
    encoder: nn.Module, image_size: int, path: Path, *, batch: int = 1, opset: int = OPSET, boxes: bool = False
) -> None:
    """Export a (patched) encoder to ONNX at `path`; weights go to `<path>.data`.

    Args:
        encoder: encoder on the CPU, in eval mode.
        image_size: S, pixels a side.
        path: file to write.
        batch: B, baked into the graph.
        opset: ONNX opset.
        boxes: the graph also takes `boxes` (B, 4), the prompt in input pixels.
    """
    import torch

    inputs = {"image": torch.zeros(batch, 3, image_size, image_size)}
    if boxes:
        inputs["boxes"] = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(batch, 1) * (image_size / 2)
    outputs = ["image_embeddings", *decision_names(encoder)]
    _export(encoder_with_decisions(encoder), tuple(inputs.values()), list(inputs), outputs, None, opset, path)


def trace_decoder(sam: Any, path: Path, *, opset: int = OPSET) -> None:
    """Export prompt encoder and mask decoder to ONNX at `path`; prompts P and points K stay dynamic."""
    import torch

    h, w = sam.prompt_encoder.image_embedding_size
    P, K = torch.export.Dim("P", min=1, max=1024), torch.export.Dim("K", min=1, max=256)
    # Not 1: the exporter would take a size of one for a constant.
    inputs = {
        "image_embeddings": (torch.zeros(1, sam.prompt_encoder.embed_dim, h, w), None),
        "point_coords": (torch.zeros(3, 2, 2), {0: P, 1: K}),
        "point_labels": (torch.ones(3, 2, dtype=torch.int64), {0: P, 1: K}),
        "mask_input": (torch.zeros(3, 1, 4 * h, 4 * w), {0: P}),
        "has_mask_input": (torch.zeros(1), None),
    }
    shapes = {name: dynamic for name, (_, dynamic) in inputs.items()}
    values = tuple(value for value, _ in inputs.values())
    outputs = ["low_res_masks", "iou_predictions"]
    _export(decoder_for_export(sam), values, list(inputs), outputs, shapes, opset, path)


def _export(
    module: nn.Module,
    inputs: tuple[Any, ...],
    input_names: list[str],
    output_names: list[str],
    dynamic: dict[str, Any] | None,
    opset: int,
    path: Path,
) -> None:
    """One call of torch's exporter, weights outside the protobuf so that 2 GB is no limit."""
    import torch

    with torch.no_grad(), _quiet():
        program = torch.onnx.export(
            module,
            inputs,
            dynamo=True,
            opset_version=opset,
            input_names=input_names,
            output_names=output_names,
            dynamic_shapes=dynamic,
            verbose=False,
        )
    if program is None:
        raise RuntimeError("torch.onnx.export returned no program")
    fold_weights(program.model)
    clear_metadata(program.model)
    program.save(str(path), external_data=True)


def fold_weights(model: Any) -> None:
    """Compute weights that are cut, scaled or transposed from others; the exporter leaves big ones to the runtime.

    Args:
        model: `onnx_ir.Model`, changed in place.
    """
    import onnx_ir as ir
    from onnx.reference import ReferenceEvaluator
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    for node in list(model.graph):
        if node.op_type not in ("Slice", "Mul", "Transpose") or any(
            v is None or not v.const_value for v in node.inputs
        ):
            continue
        if node.outputs[0].is_graph_output():
            continue
        feeds = {v.name: v.const_value.numpy() for v in node.inputs}
        (value,) = ReferenceEvaluator(ir.to_proto(node)).run(None, feeds)
        out = node.outputs[0]
        folded = ir.Value(name=f"{out.name}.folded", const_value=ir.tensor(value, name=f"{out.name}.folded"))
        model.graph.register_initializer(folded)
        out.replace_all_uses_with(folded)
        model.graph.remove(node, safe=True)
    RemoveUnusedNodesPass()(model)


def clear_metadata(model: Any) -> None:
    """Drop the exporter's notes on every node: stack traces hold paths of this machine."""
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    ClearMetadataAndDocStringPass()(model)


@contextmanager
def _quiet() -> Iterator[None]:
    """Hide the exporter's notes on opset conversion and tracer internals; its errors still raise."""
    names = ("torch.onnx", "onnxscript", "onnx_ir", "torch.export")
    levels = {name: logging.getLogger(name).level for name in names}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in names:
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            yield
        finally:
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)
