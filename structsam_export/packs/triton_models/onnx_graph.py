"""Triton model: the ONNX file beside it on ONNX Runtime's CPU provider, for servers without a backend for it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import onnxruntime as ort
import triton_python_backend_utils as pb


class TritonPythonModel:
    """The file's own inputs and outputs."""

    def initialize(self, args: dict[str, str]) -> None:
        """Load the file."""
        options, config = ort.SessionOptions(), json.loads(args["model_config"])
        options.intra_op_num_threads = int(config["parameters"]["threads"]["string_value"])
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        self.inputs = [i.name for i in self.session.get_inputs()]
        self.outputs = [o.name for o in self.session.get_outputs()]

    def execute(self, requests: list[Any]) -> list[Any]:
        """One answer a request."""
        return [self.answer(request) for request in requests]

    def answer(self, request: Any) -> Any:
        """The graph's outputs, or what ONNX Runtime says of the inputs."""
        feeds = {name: pb.get_input_tensor_by_name(request, name).as_numpy() for name in self.inputs}
        try:
            found = self.session.run(self.outputs, feeds)
        except Exception as error:  # its kinds of errors have no common base
            return pb.InferenceResponse([], pb.TritonError(str(error)[:500], pb.TritonError.INVALID_ARG))
        return pb.InferenceResponse([pb.Tensor(name, value) for name, value in zip(self.outputs, found)])
