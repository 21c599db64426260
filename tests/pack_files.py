"""Running the files of a pack."""

from __future__ import annotations

from functools import cache

import onnxruntime as ort


@cache
def session(path):
    """A file in ONNX Runtime."""
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def run(path, feeds):
    """Outputs by name."""
    made = session(path)
    return dict(zip([o.name for o in made.get_outputs()], made.run(None, feeds)))


def inputs_of(path):
    """Inputs of a file: name -> (type, shape)."""
    return {i.name: (i.type, i.shape) for i in session(path).get_inputs()}
