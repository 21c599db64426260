"""Files to benchmark: encoders of a few kilobytes, output folders around them, and reports without any run."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from graphs import FLOAT, node, traced
from onnx import helper, numpy_helper

from structsam_export.config import ExportConfig
from structsam_export.folder import ExportFolder, Manifest

MiB = 2**20
SMALL_SIDE = 4


@cache
def dense():
    """A tiny encoder as traced."""
    return traced("none", None, (), 1)


@cache
def merged():
    """The same with merging in every block."""
    return traced("structsam", "cell", (0, 1, 2), 1)


def save(model, path):
    """Write a model; returns its path."""
    onnx.save(model, str(path))
    return path


def outer_product(rows, columns, name="image"):
    """An "encoder" that holds one rows x columns intermediate, 4 bytes a number, and next to nothing else."""
    arrays = {"flat": [-1], "zero": [0], "rows": [rows], "columns": [columns], "tall": [rows, 1], "wide": [1, columns]}
    nodes = [
        node("Reshape", f"{name} flat", "numbers"),
        node("Slice", "numbers zero rows", "first"),
        node("Slice", "numbers zero columns", "second"),
        node("Reshape", "first tall", "a"),
        node("Reshape", "second wide", "b"),
        node("MatMul", "a b", "large"),
        node("ReduceMax", "large", "image_embeddings", keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "outer",
        [helper.make_tensor_value_info(name, FLOAT, (1, 3, 96, 96))],
        [helper.make_tensor_value_info("image_embeddings", FLOAT, ())],
        [numpy_helper.from_array(np.array(v, np.int64), k) for k, v in arrays.items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return onnx.shape_inference.infer_shapes(model)


def folder_of(path, model, /, sha256="0" * 64, files=("encoder.raw.onnx", "encoder.onnx"), **config):
    """An output folder with a manifest and nothing but `files`, all the same graph."""
    path.mkdir(parents=True, exist_ok=True)
    folder = ExportFolder(path, Manifest(ExportConfig(**config), {"sha256": sha256}, {}))
    for name in files:
        save(model, path / name)
        folder.add(name)
    folder.write()
    return path


def row(name="a", **given):
    """One row of a report."""
    times = {"p50": 100.0, "p90": 120.0, "p99": 130.0, "n": 3, "seconds": [0.09, 0.1, 0.12]}
    plain = {"name": name, "runner": "ort-cpu", "file": "encoder.onnx", "ratio": 1.0, "ratio_paired": 1.0}
    sizes = {"peak_bytes": 300 * MiB, "activation_bytes": 20 * MiB, "nodes": 600, "macs": 4_550_000_000}
    return {**plain, **times, **sizes, **given}


def report_of(*rows):
    """A report as `bench` returns it."""
    return {"schema": 1, "conditions": {"cpu": "a CPU", "threads": 2, "rounds": 3}, "rows": list(rows)}
