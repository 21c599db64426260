"""scripts/roofline: its counts against others, and its estimates in order."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from structsam_export.methods.cells import merged_cells
from structsam_export.tokens import WindowGrid

SCRIPTS = Path(__file__).parents[1] / "scripts"
sys.path.insert(0, str(SCRIPTS))

from roofline.estimate import FORMS, GPUS, MODELS, launches, layers, times, work  # noqa: E402


@pytest.mark.parametrize("rate", [0.0, 0.25, 0.5, 0.75])
def test_tokens_are_those_of_the_plan(rate):
    for layer, grid in zip(layers(rate), (WindowGrid((64, 64)), WindowGrid((64, 64), 14))):
        assert layer.tokens == grid.tokens - 3 * merged_cells(grid, rate)
        assert (layer.windows, layer.lines) == (grid.windows, sum(grid.window_shape))


def test_operations_are_those_of_the_layers():
    """Products of ViT-B's linear layers and of attention, layer by layer, as PyTorch's counter has them."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    model = MODELS["vit_b"]
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        for tokens in (4096,) * 4 + (25 * 196,) * 8:
            x = torch.empty(tokens, 768)
            for width in (3 * 768, 768):
                torch.nn.Linear(768, width)(x)
            hidden = torch.nn.Linear(768, 3072)(torch.empty(4096, 768))
            torch.nn.Linear(3072, 768)(hidden)
        torch.nn.Conv2d(3, 768, 16, 16)(torch.empty(1, 3, 1024, 1024))
        torch.nn.Conv2d(768, 256, 1)(torch.empty(1, 768, 64, 64))
        torch.nn.Conv2d(256, 256, 3, padding=1)(torch.empty(1, 256, 64, 64))
    assert work(model, 0.0)["flops_gemm"] == counter.get_total_flops()
    with FlopCounterMode(display=False) as counter, torch.device("meta"):
        q, k = torch.empty(12, 4096, 64), torch.empty(12, 64, 4096)
        (q @ k) @ q
    assert work(model, 0.0)["flops_attention_0"] == 4 * counter.get_total_flops()


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("gpu", GPUS)
def test_estimates_are_in_order(model, gpu):
    dense, merged = (times(MODELS[model], rate, GPUS[gpu]) for rate in (0.0, 0.5))
    for found in (dense, merged):
        assert found["products"] < found["no bias"] <= found["plugin"] <= found["folded"] <= found["dense bias"]
    assert all(merged[form] < dense[form] for form in FORMS)
    assert launches(MODELS[model], GPUS[gpu], 4)[0] < launches(MODELS[model], GPUS[gpu], 15)[0]


def test_the_page_in_docs_is_what_the_command_prints():
    command = [sys.executable, str(SCRIPTS / "roofline")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    page = (SCRIPTS.parent / "docs" / "roofline.md").read_text()
    assert "not measured on GPU" in done.stdout
    assert done.stdout.strip() in page


@pytest.mark.parametrize(
    ("option", "value", "message"), [("--rate", "0.8", "0.75"), ("--gpus", "abacus", "known: H100")]
)
def test_bad_requests_say_what_is_known(option, value, message):
    done = subprocess.run([sys.executable, str(SCRIPTS / "roofline"), option, value], capture_output=True, text=True)
    assert done.returncode == 2
    assert message in done.stderr
