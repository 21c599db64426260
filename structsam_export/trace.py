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

from structsam_export.hosts import encoder_of, host_of
from structsam_export.patch import decisions_of, prompted, recording

if TYPE_CHECKING:
    from torch import nn

OPSET = 18


def decision_names(encoder: nn.Module) -> list[str]:
    """Tensor names of all decisions of a patched encoder, in order: "plan.3.pos", "grid.2.rows", ..."""
    return [f"{name}.{part}" for name, plan in decisions_of(encoder).items() for part in plan.PARTS]


def encoder_with_decisions(encoder: nn.Module, history: list[Any] | None = None) -> nn.Module:
    """Wrap a (patched) encoder: image, and boxes if prompt-aware -> the host's outputs, then those of `decision_names`.

    `history` receives the decisions of each forward pass, by name.
    """
    import torch

    names = decision_names(encoder)

    class EncoderWithDecisions(torch.nn.Module):  # type: ignore[misc]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, image: torch.Tensor, boxes: torch.Tensor | None = None) -> tuple[torch.Tensor, ...]:
            with prompted(encoder, boxes), recording(encoder) as decisions:
                found = self.encoder(image)
            if history is not None:
                history.append(decisions)
            tensors = {f"{name}.{part}": t for name, d in decisions.items() for part, t in d.tensors.items()}
            outputs = found if isinstance(found, tuple) else (found,)
            return *outputs, *(tensors[name] for name in names)

    return EncoderWithDecisions().eval()


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

    host = host_of(encoder)
    inputs = {host.ENCODER_INPUT: torch.zeros(batch, 3, image_size, image_size)}
    if boxes:
        inputs["boxes"] = torch.tensor([[0.0, 0.0, 1.0, 1.0]]).repeat(batch, 1) * (image_size / 2)
    outputs = [*host.ENCODER_OUTPUTS, *decision_names(encoder)]
    _export(encoder_with_decisions(encoder), tuple(inputs.values()), list(inputs), outputs, None, opset, path)


def trace_decoder(sam: Any, path: Path, *, opset: int = OPSET) -> None:
    """Export prompt encoder and mask decoder of a model to ONNX at `path`; prompts P and points K stay dynamic."""
    decoder = host_of(encoder_of(sam)).decoder_for_export(sam)
    inputs, names = tuple(decoder.inputs.values()), list(decoder.inputs)
    _export(decoder.module, inputs, names, list(decoder.outputs), dict(decoder.dynamic_shapes), opset, path)


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
