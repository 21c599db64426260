"""Triton model: a photo as the encoder takes it, resized, normalised and padded."""

from __future__ import annotations

import json
from typing import Any

import triton_python_backend_utils as pb

from structsam_export.runtime.images import prepare


class TritonPythonModel:
    """`image` uint8 (H, W, 3), RGB -> `prepared` float32 (1, 3, S, S)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read sizes and limits from the configuration."""
        values = {k: v["string_value"] for k, v in json.loads(args["model_config"])["parameters"].items()}
        self.size, self.most = int(values["image_size"]), int(values["max_pixels"])
        self.how = values["preprocessing"]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer a request."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """The prepared photo, or what is wrong with it."""
        image = pb.get_input_tensor_by_name(request, "image").as_numpy()
        if image.size == 0 or image.shape[2] != 3 or image.shape[0] * image.shape[1] > self.most:
            said = f"An image is uint8 (height, width, 3) of at most {self.most} pixels, not {image.shape}."
            return pb.InferenceResponse([], pb.TritonError(said, pb.TritonError.INVALID_ARG))
        return pb.InferenceResponse([pb.Tensor("prepared", prepare(image, self.size, self.how).tensor)])
