"""Triton model: a photo with points and boxes in, masks of the photo's size out: `Predictor` on a server."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb

from structsam_export.errors import PromptError
from structsam_export.runtime.decoding import decoder_feed
from structsam_export.runtime.images import masks_of
from structsam_export.runtime.prompts import POINTS, PROMPTS, prompt_batch
from structsam_export.runtime.transforms import transform_of


class TritonPythonModel:
    """Inputs and outputs are in `config.pbtxt` and the pack's README."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read sizes and limits from the configuration."""
        values = {k: v["string_value"] for k, v in json.loads(args["model_config"])["parameters"].items()}
        self.size, self.side = int(values["image_size"]), int(values["mask_side"])
        self.most = int(values["max_mask_pixels"])
        self.transform = transform_of(values["preprocessing"], self.size)

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer a request; what one asks for in error is not the others' matter."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """Masks, or what is wrong."""
        try:
            return pb.InferenceResponse(self.masks(request))
        except (PromptError, Unfit) as error:
            return pb.InferenceResponse([], pb.TritonError(str(error), pb.TritonError.INVALID_ARG))
        except Refused as error:
            return pb.InferenceResponse([], error.args[0])

    def masks(self, request: Any) -> list[Any]:
        """The outputs of a request.

        Raises:
            PromptError, Unfit: no prompt for this photo.
            Refused: a model behind this one refuses.
        """
        given = {name: array(request, name) for name in ("point_coords", "point_labels", "boxes", "mask_input")}
        image, several = array(request, "image"), array(request, "multimask_output")
        chosen = slice(1, None) if several is None or several.all() else slice(0, 1)
        if image.size == 0 or image.shape[2] != 3:
            raise Unfit(f"An image is uint8 (height, width, 3), RGB, not {image.shape}.")
        original = (image.shape[0], image.shape[1])
        prompts = self.prompts(original, given)
        count = len(prompts.coords)
        if 3 * count * original[0] * original[1] > self.most:
            raise Unfit(f"{count} prompts on {original[0]} x {original[1]} pixels are too many masks for one request.")
        embedding = called("sam_embed", ["image_embeddings"], [pb.get_input_tensor_by_name(request, "image")])[0]
        parts = [self.decoded(embedding, prompts, slice(i, i + PROMPTS[-1])) for i in range(0, count, PROMPTS[-1])]
        logits, scores = (np.concatenate([part[i] for part in parts])[:, chosen] for i in (0, 1))
        resized = self.transform.get_preprocess_shape(*original, self.size)
        return [
            pb.Tensor("masks", masks_of(logits, self.size, resized, original)),
            pb.Tensor("iou_predictions", np.ascontiguousarray(scores)),
            pb.Tensor("low_res_masks", np.ascontiguousarray(logits)),
        ]

    def prompts(self, original: tuple[int, int], given: dict[str, Any]) -> Any:
        """Points (P, N, 2) and boxes (P, 4) in the photo's pixels as the decoder takes them."""
        points, boxes = given["point_coords"], given["boxes"]
        if points is not None and (points.ndim != 3 or points.shape[1] + 2 > POINTS[-1]):
            raise Unfit(f"A prompt has 1 to {POINTS[-1] - 2} points, point_coords (P, N, 2), not {points.shape}.")
        if points is not None:
            points = self.transform.apply_coords(points, original)
        if boxes is not None:
            boxes = self.transform.apply_boxes(boxes, original)
        return prompt_batch(points, given["point_labels"], boxes, given["mask_input"], (self.side, self.side))

    def decoded(self, embedding: Any, prompts: Any, part: slice) -> list[Any]:
        """Logits (P, 4, 4h, 4w) and guesses of IoU (P, 4) of some prompts."""
        masks = None if prompts.masks is None else prompts.masks[part]
        shape = (1, 1, self.side // 4, self.side // 4)
        feeds = decoder_feed(np.empty(shape, np.float32), prompts.coords[part], prompts.labels[part], masks)
        tensors = [pb.Tensor(name, value) for name, value in feeds.items() if name != "image_embeddings"]
        found = called("sam_decoder", ["low_res_masks", "iou_predictions"], [embedding, *tensors])
        return [tensor.as_numpy() for tensor in found]


class Unfit(Exception):
    """A request that this model does not answer: no photo, or more than it takes."""


class Refused(Exception):
    """A model behind this one refuses; holds its error, whose code reaches the client: UNAVAILABLE of a full queue."""


def array(request: Any, name: str) -> Any:
    """An input; None where it is left out."""
    tensor = pb.get_input_tensor_by_name(request, name)
    return None if tensor is None else tensor.as_numpy()


def called(model: str, outputs: list[str], inputs: list[Any]) -> list[Any]:
    """Another model's outputs, in the memory of the CPU.

    Raises:
        Refused: with its error.
    """
    made = pb.InferenceRequest(
        model_name=model,
        requested_output_names=outputs,
        inputs=inputs,
        preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU, 0),
    ).exec()
    if made.has_error():
        raise Refused(made.error())
    return [pb.get_output_tensor_by_name(made, name) for name in outputs]
