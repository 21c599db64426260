"""A method is one file and one line: a toy gets the whole contract suite, a place in the table, and ONNX."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import onnx
import pytest
import torch
from conftest import tiny_encoder
from graphs import run

import structsam_export.methods as registry
from structsam_export.catalogue import catalogue
from structsam_export.config import ExportConfig
from structsam_export.geometry import GEOMETRIES
from structsam_export.methods import make_method, method_class
from structsam_export.patch import patched
from structsam_export.schedule import resolve
from structsam_export.tokens import WindowGrid
from structsam_export.trace import decision_names, encoder_with_decisions, trace_encoder

ROOT = Path(__file__).parents[2]
# Every second row joins the row above, token by token, as many rows as the rate asks for.
TOY = """
from dataclasses import dataclass

import torch

from structsam_export.methods.base import MergeMethod
from structsam_export.methods.plan import MergePlan


@dataclass(frozen=True)
class Toy(MergeMethod):
    variant: str = "rows"

    NAME = "toy"
    VARIANTS = {"rows": 0.5}
    COMPAT = ()
    PROTECTS = "every first row"
    SOURCE = "a test"

    def joined(self, grid):
        return [row for row in range(1, grid.window_shape[0], 2)][: self.budget(grid) // grid.window_shape[1]]

    def removed(self, grid):
        return len(self.joined(grid)) * grid.window_shape[1]

    def plan(self, tokens):
        grid = tokens.grid
        rows, w = self.joined(grid), grid.window_shape[1]
        place = torch.arange(grid.tokens).view(grid.window_shape)
        into = [row - 1 for row in rows]
        alone = [row for row in range(grid.window_shape[0]) if row not in rows and row not in into]
        pos = torch.cat([place[alone].flatten(), place[into].flatten()])
        slot = torch.zeros(grid.tokens, dtype=torch.int64)
        slot[pos] = torch.arange(len(pos))
        slot[place[rows].flatten()] = slot[place[into].flatten()]
        calls = tokens.features.shape[0] * grid.windows
        made = (t.expand(calls, -1) for t in (pos, slot, place[rows].flatten()))
        return MergePlan(*made, len(rows) * w, equal=True)

    def macs(self, grid, head_dim):
        return 0
"""
# The same with a slot map that sends every source to the neighbour of its destination.
BROKEN = TOY.replace("class Toy", "class Broken").replace('NAME = "toy"', 'NAME = "broken"')
BROKEN = BROKEN.replace(
    "slot[place[rows].flatten()] = slot[place[into].flatten()]",
    "slot[place[rows].flatten()] = slot[place[into].flatten()].roll(1)",
)
PLUGIN = """
from structsam_export.methods import METHODS

METHODS["toy"] = "toy_method:Toy"
METHODS["broken"] = "broken_method:Broken"
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The toy's file, and a broken one, on the import path."""
    made = tmp_path_factory.mktemp("methods")
    for name, text in (("toy_method", TOY), ("broken_method", BROKEN), ("register_toys", PLUGIN)):
        (made / f"{name}.py").write_text(text)
    return made


@pytest.fixture
def toy(folder, monkeypatch):
    """The toy at rate 0.3, registered by one line."""
    monkeypatch.syspath_prepend(str(folder))
    monkeypatch.setitem(registry.METHODS, "toy", "toy_method:Toy")
    return make_method("toy", 0.3)


@pytest.fixture(scope="module")
def suite(folder):
    """Outcomes of the contract suite by method: test function -> (passed, failed), each counted over its cases."""
    report = folder / "report.xml"
    command = [sys.executable, "-m", "pytest", "tests/methods/test_contract.py", "-k", "toy or broken", "--tb=no"]
    command += ["-p", "register_toys", "-p", "no:cacheprovider", f"--junitxml={report}"]
    path = os.pathsep.join(filter(None, [str(folder), os.environ.get("PYTHONPATH")]))
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    found = {"toy": (Counter(), Counter()), "broken": (Counter(), Counter())}
    for case in ElementTree.parse(report).iter("testcase"):
        test, _, which = case.get("name").partition("[")
        bad = case.find("failure") is not None or case.find("error") is not None
        found["broken" if which.startswith("broken") else "toy"][bad][test] += 1
    return found


def test_a_registered_method_gets_the_whole_contract_suite(suite):
    passed, failed = suite["toy"]
    assert not failed
    contract = (ROOT / "tests" / "methods" / "test_contract.py").read_text()
    with_arguments = set(re.findall(r"^def (test_\w+)\(\w", contract, re.MULTILINE))
    assert len(with_arguments) >= 15
    assert set(passed) == with_arguments
    assert sum(passed.values()) >= 100


def test_a_method_with_a_wrong_slot_map_fails_it(suite):
    passed, failed = suite["broken"]
    assert set(failed) >= {
        "test_only_the_last_slots_hold_several_tokens",
        "test_merge_is_the_mean_of_each_group",
        "test_equal_tokens_merge_without_loss",
    }
    assert "test_a_method_describes_itself" in passed
    assert sum(failed.values()) >= 10


def test_it_is_known_by_its_name(toy):
    assert method_class("toy") is type(toy)
    assert resolve(ExportConfig(method="toy", rate=0.3), GEOMETRIES["vit_b"]).blocks == dict.fromkeys(range(12), toy)
    row = next(row for row in catalogue() if row["name"] == "toy")
    assert row["variants"] == {"rows": 0.5} and row["macs_saved"]["rows"] > 0.1


def test_it_merges_what_it_says(toy, folder):
    assert toy.removed(WindowGrid((8, 6))) == 12  # 14 of 48, in whole rows of six
    assert Path(sys.modules["toy_method"].__file__).parent == folder


def test_it_is_exported_like_any_other(toy, tmp_path):
    encoder = tiny_encoder(image=(96, 96))
    image = torch.randn(1, 3, 96, 96, generator=torch.Generator().manual_seed(1))
    with patched(encoder, toy, [0, 1]):
        want, names = encoder_with_decisions(encoder)(image), decision_names(encoder)
        trace_encoder(encoder, 96, tmp_path / "toy.onnx")
    assert names == [f"plan.{i}.{part}" for i in (0, 1) for part in ("pos", "slot", "sources")]
    found = run(onnx.load(tmp_path / "toy.onnx"), {"image": image.numpy()})
    assert list(found) == ["image_embeddings", *names]
    assert np.abs(found["image_embeddings"] - want[0].numpy()).max() < 1e-5
    assert all(np.array_equal(found[name], t) for name, t in zip(names, want[1:]))
    assert np.abs(want[0] - encoder(image)).max() > 1e-2
