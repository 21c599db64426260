"""Registrations say what the operators are, and TensorRT-RTX makes plugins of them; without a GPU."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import venv
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import onnx
import pytest
from graphs import traced
from onnx import helper
from shared_traces import sharing

from structsam_export.backends import backend
from structsam_export.fused import DOMAIN, PLUGINS, part, plugin_folder
from structsam_export.precision import calibrate, convert
from structsam_export.rewrite import apply_plugins, rewrite
from structsam_export.rewrite.operators import FUSED

ROOT = Path(__file__).parents[2]
IMAGE = {"image": np.random.default_rng(0).standard_normal((2, 3, 96, 96)).astype(np.float32)}
rtx = pytest.mark.skipif(not backend("tensorrt-rtx").installed(), reason="TensorRT-RTX is not installed")
operators = part("registration", "operators")


@pytest.fixture(scope="module")
def half(tmp_path_factory):
    """An encoder in FP16 with all plugins."""
    folder = tmp_path_factory.mktemp("registration")
    with sharing():
        onnx.save(traced("structsam", "cell", (0, 1, 2), 2), str(folder / "raw.onnx"))
    rewrite(folder / "raw.onnx", folder / "encoder.onnx", keep_outputs=("image_embeddings",))
    convert(folder / "encoder.onnx", folder / "half.onnx", "fp16", calibrate(folder / "encoder.onnx", [IMAGE]))
    apply_plugins(folder / "half.onnx", folder / "plugins.onnx", tuple(PLUGINS))
    return folder / "plugins.onnx"


def python(*arguments, **variables):
    """Python in a process of its own: plugins are registered for a whole process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), **variables}
    return subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, env=environment)


def text(kind):
    """A kind of ours as `rewrite.operators` writes it."""
    return {"float32": "tensor(float)", "int32": "tensor(int32)"}.get(kind, kind)


def test_types_are_those_of_the_graph_rules():
    assert set(operators.TYPES) == set(operators.FIELDS) == set(PLUGINS.values())
    for declared in FUSED:
        inputs, outputs = operators.TYPES[declared.op]
        assert (tuple(map(text, inputs)), tuple(map(text, outputs))) == (declared.inputs, declared.outputs)


@pytest.mark.parametrize(
    ("op", "inputs", "fields"),
    [
        ("TokenEnergy", [[2, 6, 6, 16]], {"heads": 2}),
        ("MergePlan", [[2, 6, 6]], {"window_h": 4, "window_w": 4, "merged": 2}),
        ("MergePlan", [[1, 64, 64]], {"window_h": 14, "window_w": 14, "merged": 32}),
        ("TokenMerge", [[2, 6, 6, 16], [8, 10]], {"window_h": 4, "window_w": 4, "merged": 2}),
        ("TokenUnmerge", [[8, 10, 16], [8, 16], [2, 6, 6, 16]], {"window_h": 4, "window_w": 4}),
        ("RelposAttention", [[8, 10, 16]] * 3 + [[8, 10, 2, 14], [8, 10]], {"heads": 2, "window_h": 4, "window_w": 4}),
    ],
)
def test_shapes_are_those_of_the_graph_rules(op, inputs, fields):
    declared = next(one for one in FUSED if one.op == op)
    node = helper.make_node(op, [], ["a"], domain=DOMAIN, **fields)
    shapes = operators.output_shapes(op, inputs, operators.Fields(**fields))
    assert shapes == declared.shapes(node, inputs)


def test_types_that_are_allowed():
    assert operators.allowed("TokenUnmerge", ["float16", "int32", "float32", "float32"], 3)
    assert not operators.allowed("TokenUnmerge", ["float16", "int32", "float32", "float16"], 3)
    assert not operators.allowed("MergePlan", ["float16"], 0)
    assert operators.output_types("TokenUnmerge", ["float16", "int32", "float32"]) == ["float32"]


def test_the_library_in_c_has_the_same_table():
    source = (plugin_folder() / "registration" / "v3" / "operators.h").read_text()
    kinds = {"float32": "kFloat32", "int32": "kInt32", "T": "kT", "R": "kR"}
    for op, (inputs, outputs) in operators.TYPES.items():
        rows = [", ".join(f"K::{kinds[kind]}" for kind in side) for side in (inputs, outputs)]
        fields = ", ".join(f'"{field}"' for field in operators.FIELDS[op])
        row = f'{{"{op}", {{{fields}}}, {{{rows[0]}}}, {{{rows[1]}}}}}'
        assert re.sub(r"\s", "", row) in re.sub(r"\s", "", source)


@rtx
def test_tensorrt_makes_plugins_of_them_and_four_launches_a_block(half):
    ran = python("scripts/plugin_launches", half, "--json")
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout)
    assert found["plugins"] == 3 * len(PLUGINS)
    once = {"TokenEnergy": 1, "MergePlan": 1, "TokenMerge": 1, "TokenUnmerge": 1}
    assert found["blocks"] == [once] * 3


BUILD = """
import sys
from pathlib import Path
from structsam_export.backends import backend
from structsam_export.backends.tensorrt_rtx import library
from structsam_export.fused import part
creators = part("registration", "v3_python").register(library()) if sys.argv[2] == "registered" else []
print(backend("tensorrt-rtx").build(Path(sys.argv[1]), Path(sys.argv[1]).parent, "encoder", "sm89", {}).bytes)
"""


@rtx
def test_an_engine_is_built_with_plugins_and_a_larger_one_without(half):
    """Where nothing is registered, TensorRT inlines the functions."""
    sizes = {}
    for how in ("registered", "inlined"):
        ran = python("-c", BUILD, half, how)
        assert ran.returncode == 0, ran.stderr
        sizes[how] = int(ran.stdout.split()[-1])
    assert 100_000 < sizes["registered"] < sizes["inlined"]


KERNELS = (plugin_folder() / "kernel_launch.py").is_file()


@pytest.mark.skipif(not KERNELS or find_spec("triton") is None, reason="no kernels, or no Triton to compile them")
def test_every_kind_of_node_has_a_kernel_under_the_key_of_the_library(half, tmp_path):
    """Types and shapes of the typed graph; five operators in windows, four more in the global block."""
    ran = python("scripts/plugin_kernels", half, "--sm", "87", "--output", tmp_path)
    assert ran.returncode == 0, ran.stderr
    lines = [line.split() for line in (tmp_path / "kernels.txt").read_text().splitlines()]
    keys = [words[0] for words in lines]
    assert len(keys) == len(set(keys)) == 9
    assert "TokenUnmerge:window_h=4,window_w=4:float16,int32,float32:8x10x16,8x16,2x6x6x16" in keys
    for _, symbol, file, *numbers in lines:
        assert symbol.encode() in (tmp_path / file).read_bytes() and min(map(int, numbers[:4])) > 0


@pytest.mark.lean
def test_quick_plugins_register_with_the_lean_runtime(tmp_path):
    """An environment of its own: real bindings of TensorRT 11.4, which has no Python package with a builder on PyPI."""
    place = Path(os.environ.get("STRUCTSAM_LEAN", tmp_path / "lean"))
    run = place / "bin" / "python"
    if not run.exists():
        venv.create(place, with_pip=True)
        wanted = ["numpy", "tensorrt_lean_cu13_libs==11.4.*", "tensorrt_lean_cu13_bindings==11.4.*"]
        subprocess.run([run, "-m", "pip", "install", "-q", *wanted], check=True)
    driver = Path(__file__).with_name("lean_runtime.py")
    ran = subprocess.run([run, driver, plugin_folder() / "registration"], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    assert found["version"].startswith("11.4")
    assert {name for space, name, version in found["creators"] if (space, version) == ("structsam", "1")} == set(
        PLUGINS.values()
    )
    assert found["names"] == [f"structsam::{op}" for op in operators.FIELDS]
