"""The report's page: names from outside are text, and nothing but its own style and pictures may load."""

from __future__ import annotations

import base64
import hashlib
import re
from types import SimpleNamespace

import numpy as np
import pytest

from structsam_export.report import html
from structsam_export.runtime.photos import Photo

EVIL = "<script>alert(1)</script>\"'><img src=x onerror=y>{{ 7*7 }}"
ROW = {"against": "dense", "max_abs": 0.0, "max_rel": 0.0, "cosine": 1.0, "mask_iou_mean": 1.0, "mask_iou_min": 1.0}
LATENCY = {"p50": 1.0, "p90": 1.0, "p99": 1.0, "n": 1, "interleaved": True}


@pytest.fixture
def page():
    """A page on which every text from outside is hostile."""
    photo = Photo(EVIL, np.zeros((8, 8, 3), np.uint8), [])
    stages = {name: SimpleNamespace(masks=[np.zeros((0, 8, 8), bool)]) for name in ("dense", "eager", "onnx")}
    inputs = SimpleNamespace(photos=[photo], prepared=[None])
    reference = SimpleNamespace(inputs=inputs, decisions=[], names=())
    engine = {"file": EVIL, "backend": EVIL, "version": EVIL, "sm": EVIL, "bytes": 1, "executed": False, "sha256": EVIL}
    report = {
        "passed": True,
        "model": {"name": EVIL, "sha256": EVIL},
        "method": {"name": EVIL, "variant": EVIL},
        "config": {"rate": EVIL, "precision": "fp32"},
        "macs": {"dense": 2.0, "graph": 1.0, "paper": 1.0},
        "tokens": {},
        "layers": [EVIL],
        "parity": {"eager": {**ROW, "masks": 1, "passed": True, "decision_agreement": None, "ties": None}},
        "quality": dict.fromkeys(("miou_vs_dense", "embedding_cosine_vs_dense", "miou_true_dense"), 1.0)
        | {"miou_true_patched": None, "true_masks": 0},
        "latency": {"dense": LATENCY},
        "rewrite": {EVIL: {EVIL: 1}},
        "graph": {EVIL: {"nodes_raw": 1, "nodes": 1}},
        "precision": None,
        "engines": [engine],
        "versions": {EVIL: EVIL},
        "prompt": {EVIL: {"region_tokens": 1, "merged": {EVIL: 1}}},
    }
    return html.render(report, SimpleNamespace(reference=reference, stages=stages), None)


def test_names_are_text(page):
    assert page.count("&lt;script&gt;") >= 10
    assert "<script" not in page and "<img src=x" not in page and "49" not in re.sub(r"base64,\S+", "", page)


def test_the_policy_allows_the_page_and_nothing_else(page):
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]*)"', page)[1]
    assert "default-src 'none'" in policy and "unsafe" not in policy and "http" not in policy
    (style,) = re.findall(r"<style>(.*?)</style>", page, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in policy
    assert " style=" not in page and set(re.findall(r'src="(\w+):', page)) == {"data"}


def test_an_engine_that_ran_is_named():
    engine = {"backend": "openvino", "version": "2026.1", "sm": "fp32", "executed": True}
    report = {"config": {"precision": "fp32"}, "engine": engine}
    assert html.names_of(report)["engine"] == "engine, openvino 2026.1, fp32"
    assert html.names_of({**report, "engine": {**engine, "executed": False}})["engine"] == "engine"
