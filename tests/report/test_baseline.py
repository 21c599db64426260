"""Parity in CI: what counts as worse than a stored report, and what CI is shown."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from xml.etree import ElementTree as ET

import pytest

from structsam_export.errors import ArtifactError
from structsam_export.report.baseline import (
    PARITY,
    QUALITY,
    check_photos,
    check_replaceable,
    check_same,
    judge,
    read_baseline,
)
from structsam_export.report.junit import junit
from structsam_export.report.summary import summary
from structsam_export.validate.parity import GATES

SHA = "a" * 64


def stage(against, precision, **changes):
    good = {"max_rel": 1e-6, "mask_iou_mean": 1.0, "mask_iou_min": 1.0, "decision_agreement": 1.0}
    return {"against": against, **good, "passed": True, "gates": dict(GATES[precision]), **changes}


@pytest.fixture
def report():
    return {
        "schema": 1,
        "passed": True,
        "model": {"sha256": SHA, "name": "tiny"},
        "config": {"method": "structsam", "rate": 0.5, "precision": "fp16", "params": [["margin", "0.5"]]},
        "parity": {
            "onnx_raw": stage("eager", "fp32"),
            "onnx": stage("onnx_raw", "fp16", max_rel=4e-4, mask_iou_mean=0.9998, mask_iou_min=0.998),
        },
        "quality": {"miou_vs_dense": 0.9, "miou_true_patched": None},
        "graph": {"encoder": {"nodes_raw": 2000, "nodes": 900}, "decoder": {"nodes": 400}},
        "macs": {"dense": 100_000, "graph": 70_000},
        "latency": {
            "dense": {"p50": 10.0, "interleaved": True},
            "onnx": {"p50": 5.0, "interleaved": True},
            "engine": {"p50": 1.0, "interleaved": False},
        },
        "photos": [{"name": "cat", "prompts": ["box"]}],
    }


def changed(report, *keys, value):
    made = copy.deepcopy(report)
    at = made
    for key in keys[:-1]:
        at = at[key]
    at[keys[-1]] = value
    return made


def test_a_report_is_not_worse_than_itself(report):
    verdict = judge(report, report)
    assert not verdict.worse
    judged = {(c.stage, c.metric) for c in verdict.checks if c.limit is not None}
    assert judged == {
        *((name, metric) for name in report["parity"] for metric in PARITY["fp32"]),
        ("quality", "miou_vs_dense"),
        *(("encoder", "nodes"), ("decoder", "nodes"), ("encoder", "macs")),
    }


@pytest.mark.parametrize(
    ("keys", "fine", "worse"),
    [
        (("parity", "onnx_raw", "max_rel"), 1e-5, 1.2e-5),
        (("parity", "onnx", "max_rel"), 2.3e-3, 2.5e-3),
        (("parity", "onnx", "mask_iou_mean"), 0.99931, 0.99929),
        (("parity", "onnx_raw", "mask_iou_mean"), 0.99991, 0.99989),
        (("parity", "onnx", "mask_iou_min"), 0.9951, 0.9949),
        (("parity", "onnx", "decision_agreement"), 0.9991, 0.9989),
        (("parity", "onnx", "decision_agreement"), 1.0, None),
        (("quality", "miou_vs_dense"), 0.8981, 0.8979),
        (("graph", "encoder", "nodes"), 909, 910),
        (("macs", "graph"), 70_070, 70_071),
    ],
)
def test_a_number_may_be_worse_by_so_much(report, keys, fine, worse):
    assert not judge(changed(report, *keys, value=fine), report).worse
    assert not judge(report, changed(report, *keys, value=worse)).worse or worse is None, "better is never worse"
    (found,) = judge(changed(report, *keys, value=worse), report).worse
    then = report
    for key in keys:
        then = then[key]
    assert found.then == then
    assert found.metric in ("macs", keys[-1])
    assert found.stage in (*keys, "encoder")
    for word in (found.stage, found.metric, "now", "in the baseline"):
        assert word in str(found)


def test_a_stage_that_no_longer_runs_fails_and_a_new_one_does_not(report):
    less = copy.deepcopy(report)
    del less["parity"]["onnx"]
    (found,) = judge(less, report).worse
    assert (found.stage, found.metric) == ("onnx", "run")
    assert not judge(report, less).worse


def test_true_masks_count_where_the_baseline_has_them(report):
    truth = changed(report, "quality", "miou_true_patched", value=0.8)
    assert not judge(truth, report).worse
    assert [c.metric for c in judge(report, truth).worse] == ["miou_true_patched"]
    assert not judge(
        changed(report, "quality", "miou_true_patched", value=0.8 - QUALITY["miou_vs_dense"] / 2), truth
    ).worse


def test_time_fails_only_if_asked_and_as_a_ratio(report):
    slow = changed(report, "latency", "onnx", "p50", value=7.0)
    assert not judge(slow, report).worse
    assert not judge(slow, report, slowdown=1.5).worse
    (found,) = judge(slow, report, slowdown=1.25).worse
    assert (found.stage, found.metric, found.now, found.then) == ("onnx", "time", 0.7, 0.5)
    machine = changed(slow, "latency", "dense", "p50", value=14.0)
    assert not judge(machine, report, slowdown=1.25).worse, "the whole machine is slower"


def test_every_precision_has_tolerances_inside_its_gates():
    assert set(PARITY) == set(GATES)
    for precision, allowed in PARITY.items():
        assert set(allowed) == set(GATES[precision])
        assert allowed["max_rel"] <= GATES[precision]["max_rel"] / 5


def test_a_baseline_of_something_else_is_refused(report, tmp_path):
    config = {**report["config"], "params": (("margin", "0.5"),), "checkpoint": "/elsewhere.pth"}
    check_same(SHA, config, report, tmp_path)
    with pytest.raises(ArtifactError, match="weights: aaaaaaaaaaaa there, bbbb"):
        check_same("b" * 64, config, report, tmp_path)
    with pytest.raises(ArtifactError, match=r"rate: 0.5 there, 0.25 here"):
        check_same(SHA, {**config, "rate": 0.25}, report, tmp_path)
    with pytest.raises(ArtifactError, match="photos or prompts: cat there, dog here"):
        check_photos(changed(report, "photos", value=[{"name": "dog", "prompts": ["box"]}]), report, tmp_path)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("", "damaged"),
        ('{"schema": 1', "damaged"),
        ("[" * 100_000, "nested too deeply"),
        ("[]", "not an object"),
        ('{"photo": 1}', "lacks 'schema'"),
        ('{"schema": 0, "passed": true, "parity": {}}', "schema 0, this version writes 1"),
        ('{"schema": 1, "passed": true, "parity": {"onnx": {"max_rel": NaN}}}', "lacks"),
    ],
)
def test_a_damaged_foreign_or_older_baseline_is_named(content, words, tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text(content)
    with pytest.raises(ArtifactError, match=words) as refused:
        read_baseline(path)
    assert str(path) in str(refused.value)
    assert "--update-baseline" in str(refused.value)


@pytest.mark.parametrize(
    "keys", [("parity", "onnx", "max_rel"), ("macs", "graph"), ("graph", "encoder"), ("latency", "dense"), ("photos",)]
)
def test_values_of_another_kind_are_refused(report, keys, tmp_path):
    path = tmp_path / "baseline.json"
    path.write_text(json.dumps(report))
    assert read_baseline(path) == report
    for value in ("x", float("nan"), [[]]):
        path.write_text(json.dumps(changed(report, *keys, value=value)))
        with pytest.raises(ArtifactError, match="no baseline for this version"):
            read_baseline(path)


def test_a_failed_report_is_no_baseline_and_a_missing_one_is_said(report, tmp_path):
    path = tmp_path / "baseline.json"
    with pytest.raises(ArtifactError, match=r"does not exist.*--update-baseline"):
        read_baseline(path)
    path.write_text(json.dumps({**report, "passed": False}))
    with pytest.raises(ArtifactError, match="did not pass itself"):
        read_baseline(path)


def test_only_reports_are_replaced(report, tmp_path):
    path = tmp_path / "baseline.json"
    check_replaceable(path)
    for content in (json.dumps(report), '{"schema": 0, "parity": 5}'):
        path.write_text(content)
        check_replaceable(path)
    for content in ("\x89PNG", "[]", '{"name": "package"}'):
        path.write_text(content)
        with pytest.raises(ArtifactError, match="is not replaced"):
            check_replaceable(path)


HOSTILE = 'mine"><script>&\x00\x1b[31m|`*\ud800'


def test_junit_has_a_case_a_check_and_is_escaped(report):
    failed = changed(report, "parity", "onnx", "passed", value=False)
    failed["parity"]["onnx"]["max_rel"] = 0.5
    verdict = judge(failed, report)
    root = ET.fromstring(junit(verdict, HOSTILE))
    cases = root.findall("./testsuite/testcase")
    assert len(cases) == len(verdict.checks) == int(root.attrib["tests"])
    bad = {
        (c.attrib["classname"].rpartition(".")[2], c.attrib["name"]): c for c in cases if c.find("failure") is not None
    }
    assert set(bad) == {("onnx", "gates"), ("onnx", "max_rel")}
    assert int(root.attrib["failures"]) == 2
    message = bad["onnx", "max_rel"].find("failure").attrib["message"]
    assert "0.5 now, 0.0004 in the baseline" in message
    assert root.find("testsuite").attrib["name"] == 'mine"><script>&??[31m|`*?'


def test_the_summary_shows_both_values_and_no_markup_of_names(report):
    worse = changed(report, "quality", "miou_vs_dense", value=0.7)
    text = summary(worse, judge(worse, report, Path("base_line.json")), HOSTILE.replace("\ud800", ""))
    assert "<script>" not in text
    assert "failed" in text.splitlines()[0]
    assert "**0.7 (0.9)**" in text
    assert "| onnx | onnx\\_raw | 0.0004 (0.0004) |" in text
    assert "unpatched PyTorch = 1: onnx 0.50" in text
    fine = summary(report, judge(report, report, Path("base_line.json")), "mine")
    assert "Nothing is worse than the baseline base\\_line.json" in fine
    alone = summary(report, judge(report), "mine")
    assert "IoU 0.9000" in alone
