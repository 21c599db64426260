"""Rule use_plugin on graphs that have nothing to fuse; what it does to exports is in tests/plugins."""

from __future__ import annotations

import numpy as np
import pytest
from graphs import graph_of, node, ops

from structsam_export.fused import PLUGINS
from structsam_export.rewrite import use_plugin


@pytest.mark.parametrize("name", PLUGINS)
def test_an_unrelated_graph_is_left_alone(name):
    graph = graph_of(
        [node("MatMul", "x w", "p"), node("Softmax", "p", "s", axis=-1), node("Add", "s x", "y")],
        inputs={"x": (2, 4, 4)},
        outputs="y",
        w=np.ones((4, 4), np.float32),
    )
    before = ops(graph)
    assert use_plugin.apply(graph, name).count == 0
    assert ops(graph) == before
