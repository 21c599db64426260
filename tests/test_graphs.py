"""Graphs of others, looked through before a parser sees them."""

from __future__ import annotations

import pytest
from hostile_graphs import bytes_of, lay_beside

from structsam_export.errors import ArtifactError
from structsam_export.graphs import load


@pytest.mark.parametrize(
    ("form", "said"),
    [
        ("a function calls itself", "calls itself"),
        ("functions call each other", "calls itself"),
        ("functions grow", "more than"),
        ("no graph", "no graph"),
        ("no outputs", "no graph"),
        ("external: parent", "no plain file beside"),
        ("external: absolute", "no plain file beside"),
        ("external: link", "no plain file beside"),
        ("external: hard link", "no plain file beside"),
        ("external: empty", "no plain file beside"),
        ("external: folder", "no plain file beside"),
        ("nested: 10000", "no ONNX file"),
    ],
)
def test_refused(form, said, tmp_path):
    lay_beside(tmp_path)
    (tmp_path / "a.onnx").write_bytes(bytes_of(form))
    with pytest.raises(ArtifactError, match=said):
        load(tmp_path / "a.onnx")


@pytest.mark.parametrize("form", ["as it should be", "a function that is missing", "nested: 20", "external: unlisted"])
def test_left_to_others(form, tmp_path):
    """What is unusual, but leads nowhere."""
    lay_beside(tmp_path)
    (tmp_path / "a.onnx").write_bytes(bytes_of(form))
    assert load(tmp_path / "a.onnx").graph.output
