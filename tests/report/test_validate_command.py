"""`validate --baseline` on a real export of the tiny model."""

from __future__ import annotations

import json
from xml.etree import ElementTree as ET

import pytest
from demo_exports import PHOTOS

from structsam_export.config import ExportConfig
from structsam_export.pipeline import rewrite_folder, trace_only


@pytest.fixture
def folder(tiny_model, tmp_path):
    """Traced and rewritten."""
    config = ExportConfig(
        model="tiny",
        checkpoint=str(tiny_model),
        rate=0.5,
        precision="fp32",
        backend="none",
        images=(str(PHOTOS / "coffee.jpg"),),
    )
    trace_only(config, tmp_path / "mine")
    rewrite_folder(tmp_path / "mine")
    return tmp_path / "mine"


def test_a_baseline_from_the_first_run_to_a_damaged_one(folder, in_process, tmp_path):
    base, page, cases = tmp_path / "base.json", tmp_path / "page.md", tmp_path / "cases.xml"
    page.write_text("what an earlier command wrote\n")
    status, _, err = in_process("validate", folder, "--baseline", base, "--summary", page)
    assert status == 5, err
    assert "does not exist" in err
    status, _, err = in_process("validate", folder, "--baseline", base, "--update-baseline", "--junit", cases)
    assert status == 0, err
    assert base.read_bytes() == (folder / "report.json").read_bytes()
    assert ET.parse(cases).getroot().attrib["failures"] == "0"
    stored = json.loads(base.read_text())
    status, out, err = in_process("validate", folder, "--baseline", base, "--summary", page, "--json")
    assert status == 0, err
    printed = json.loads(out)["baseline"]
    assert printed["passed"]
    assert len(printed["checks"]) > 10
    assert page.read_text().startswith("what an earlier command wrote\n## ")

    # A rule that no longer fires makes more nodes; masks of the merged model are worse than they were.
    stored["graph"]["encoder"]["nodes"] -= 30
    stored["quality"]["miou_vs_dense"] += 0.01
    base.write_text(json.dumps(stored))
    status, _, err = in_process("validate", folder, "--baseline", base, "--junit", cases, "--summary", page)
    assert status == 3
    assert "encoder nodes: " in err.replace("\n", " ")
    assert "quality miou_vs_dense: " in err.replace("\n", " ")
    failed = [c.attrib["name"] for c in ET.parse(cases).getroot().iter("testcase") if c.find("failure") is not None]
    assert failed == ["miou_vs_dense", "nodes"]
    assert "failed" in page.read_text()

    stored["config"]["rate"] = 0.25
    base.write_text(json.dumps(stored))
    before = (folder / "report.json").stat().st_mtime_ns
    status, _, err = in_process("validate", folder, "--baseline", base)
    assert status == 5
    assert "rate: 0.25 there, 0.5 here" in err.replace("\n", " ")
    assert (folder / "report.json").stat().st_mtime_ns == before, "refused before any work"


def test_options_that_need_a_baseline(in_process, tmp_path):
    for option in (["--update-baseline"], ["--max-slowdown", "1.2"]):
        status, _, err = in_process("validate", tmp_path, *option)
        assert status == 2
        assert "--baseline REPORT" in err
    photo = tmp_path / "photo.jpg"
    photo.write_bytes(b"\xff\xd8")
    status, _, err = in_process("validate", tmp_path, "--baseline", photo, "--update-baseline")
    assert status == 5
    assert photo.read_bytes() == b"\xff\xd8"
    status, _, err = in_process("validate", tmp_path, "--junit", tmp_path / "no" / "file.xml")
    assert status == 2


def test_the_unmerged_model_is_timed_on_the_same_runtime(folder, in_process):
    title = "ONNX rewritten, nothing merged, FP32"
    status, out, err = in_process("validate", folder, "--json")
    assert status == 0, err
    assert "onnx_unmerged" not in json.loads(out)["latency"]
    assert "--unmerged-latency" in (folder / "report.html").read_text()
    status, _, err = in_process("validate", folder, "--unmerged-latency")
    assert status == 0, err
    beside = [path for path in folder.parent.iterdir() if "-none-r0-" in path.name]
    status, out, err = in_process("validate", folder, "--json")  # what is there now is timed without being asked for
    assert status == 0, err
    assert len(beside) == 1 and json.loads(out)["latency"]["onnx_unmerged"]["n"] > 1
    assert title in (folder / "report.html").read_text()
