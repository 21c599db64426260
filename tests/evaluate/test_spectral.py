"""Spectra of token graphs against matrices written out in full."""

from __future__ import annotations

import numpy as np
import pytest

from structsam_export.config import ExportConfig
from structsam_export.errors import UsageError
from structsam_export.evaluate.spectral import (
    block_features,
    compare,
    lifted_spectrum,
    methods_at,
    spectral_distance,
    spectrum,
    table,
    token_graph,
)
from structsam_export.job import Job
from structsam_export.methods import make_method
from structsam_export.runtime.photos import bundled_photos


def lifted(weights, groups):
    """The lifted graph in full: every weight the mean over the pairs of its two groups."""
    found = np.empty_like(weights)
    for i in range(len(weights)):
        for j in range(len(weights)):
            found[i, j] = weights[np.ix_(groups == groups[i], groups == groups[j])].mean()
    return found


@pytest.fixture
def graph():
    return token_graph(np.random.default_rng(0).normal(size=(14, 5)))


def test_weights_are_cosine_distances():
    found = token_graph(np.array([[1, 0], [0, 3], [2, 2], [-1, 0]], np.float32))
    assert found.dtype == np.float64
    half = 1 - np.sqrt(0.5)
    assert found == pytest.approx(
        np.array([[0, 1, half, 2], [1, 0, half, 1], [half, half, 0, 2 - half], [2, 1, 2 - half, 0]]), abs=1e-12
    )


def test_the_spectrum_of_known_graphs():
    complete = np.ones((6, 6)) - np.eye(6)
    assert spectrum(complete) == pytest.approx([0, *[6 / 5] * 5], abs=1e-12)
    ring = np.roll(np.eye(8), 1, 0) + np.roll(np.eye(8), -1, 0)
    assert spectrum(ring) == pytest.approx(np.sort(1 - np.cos(2 * np.pi * np.arange(8) / 8)), abs=1e-12)
    assert spectrum(np.zeros((3, 3))) == pytest.approx([1, 1, 1])  # nothing to divide by


def test_the_lifted_spectrum_is_that_of_the_lifted_graph(graph):
    groups = np.array([7, 7, 7, 2, 2, 0, 1, 3, 3, 3, 3, 9, 8, 2])
    full = spectrum(lifted(graph, groups))
    assert lifted_spectrum(graph, groups) == pytest.approx(full, abs=1e-12)
    assert spectral_distance(graph, groups) == pytest.approx(np.abs(spectrum(graph) - full).sum(), abs=1e-12)


def test_merging_equal_tokens_moves_nothing():
    rng = np.random.default_rng(2)
    features = rng.normal(size=(10, 4))
    features[5:] = features[:5] * rng.uniform(0.5, 2, (5, 1))  # only directions count
    groups = np.arange(10) % 5
    assert spectral_distance(token_graph(features), groups) == pytest.approx(0, abs=1e-9)
    assert spectral_distance(token_graph(features), np.arange(10) // 2) > 0.1
    assert spectral_distance(token_graph(features), np.arange(10)) == pytest.approx(0, abs=1e-12)


@pytest.fixture(scope="module")
def job():
    return Job.prepare(ExportConfig(rate=0.5, layers="0,1"))


def test_methods_at_equal_rate(job):
    found = methods_at(job)
    assert list(found)[0].startswith("structsam") and len(found) == 7
    assert {m.rate for m in found.values()} == {0.5}
    assert len({(m.NAME, m.variant) for m in found.values()}) == len(found)
    far = methods_at(Job.prepare(ExportConfig(method="tomesd", rate=0.7)))
    assert list(far)[0].startswith("tomesd") and not any(m.NAME == "tome" for m in far.values())


@pytest.mark.parametrize(
    "config",
    [
        ExportConfig(method="none"),
        ExportConfig(method="cubist", rate=0.3),
        ExportConfig(method="sparsesam"),
        ExportConfig(prompt_aware=True),
        ExportConfig(rate="0.3:0-3,0.5:4-7"),
    ],
)
def test_what_has_no_plan_is_refused(config):
    with pytest.raises(UsageError, match="--spectral compares"):
        methods_at(Job.prepare(config))


def test_methods_on_a_photo(job):
    """Blocks 0 (windows) and 7 (global): fewer tokens mean a larger distance, no merging none."""
    photo = bundled_photos(1)[0].image
    methods = {f"r{r}": make_method("tomesd", r) for r in (0.0, 0.3, 0.7)}
    rows = compare(job.loaded, methods, (0, 7), [photo])
    assert [r["name"] for r in rows] == list(methods)
    for kind in ("window", "global"):
        values = [r[kind] for r in rows]
        assert values[0] == pytest.approx(0, abs=1e-9) and values[0] < values[1] < values[2]
    assert rows[0]["kept"] == 1 > rows[1]["kept"] > rows[2]["kept"] > 0.3
    assert list(rows[0]["blocks"]) == ["0", "7"]
    head, body = table({"rows": rows})
    assert {len(cells) for cells in body} == {len(head)}


def test_features_are_those_the_first_block_merges_by(job):
    import torch

    from structsam_export.patch import recording
    from structsam_export.runtime.images import prepare

    photo = bundled_photos(1)[0].image
    features = block_features(job.loaded, photo)
    assert sorted(features) == list(range(8))
    encoder = job.loaded.sam.image_encoder
    ready = prepare(photo, job.loaded.geometry.image_size)
    with torch.no_grad(), job.schedule.patched(encoder), recording(encoder) as decisions:
        encoder(torch.as_tensor(ready.tensor))
    assert torch.equal(decisions["plan.0"].inputs[0], features[0])
    assert not any(block.norm1._forward_hooks for block in encoder.blocks)
