"""Triton model: an encoder of a fixed batch, for any number of images up to that.

Triton gathers requests of several clients into one batch (`dynamic_batching`); what is missing is filled up, because
the graph's shapes are fixed, and `sam_encoder_fixed` runs it.
"""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import triton_python_backend_utils as pb


class TritonPythonModel:
    """`image` float32 (n, 3, S, S) -> `image_embeddings` float32 (n, C, h, w)."""

    def initialize(self, args: dict[str, str]) -> None:
        """Read the batch from the configuration."""
        self.batch = int(json.loads(args["model_config"])["max_batch_size"])

    def execute(self, requests: list[Any]) -> list[Any]:
        """All requests, as full batches; each gets its own part of what comes out."""
        images = [pb.get_input_tensor_by_name(request, "image").as_numpy() for request in requests]
        every, found = np.concatenate(images), []
        for first in range(0, len(every), self.batch):
            part = every[first : first + self.batch]
            full = np.concatenate([part, part[-1:].repeat(self.batch - len(part), 0)])
            made = pb.InferenceRequest(
                model_name="sam_encoder_fixed",
                requested_output_names=["image_embeddings"],
                inputs=[pb.Tensor("image", full)],
                preferred_memory=pb.PreferredMemory(pb.TRITONSERVER_MEMORY_CPU, 0),
            ).exec()
            if made.has_error():
                return [pb.InferenceResponse([], made.error()) for _ in requests]
            found.append(pb.get_output_tensor_by_name(made, "image_embeddings").as_numpy()[: len(part)])
        parts = np.split(np.concatenate(found), np.cumsum([len(image) for image in images])[:-1])
        return [pb.InferenceResponse([pb.Tensor("image_embeddings", part)]) for part in parts]
