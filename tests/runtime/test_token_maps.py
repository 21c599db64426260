"""Maps of tokens read from a graph without PyTorch are those of its own plans, for every kind of plan."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from tiny_model import tiny_encoder

from structsam_export.errors import UsageError
from structsam_export.methods import METHODS, make_method, method_class
from structsam_export.methods.mlp import ResidualConsistency
from structsam_export.patch import apply_patch, recording
from structsam_export.runtime.token_maps import groups_of

KINDS = [(name, variant) for name in METHODS if name != "none" for variant in method_class(name).VARIANTS]
DEPTH = 4


@pytest.mark.parametrize("side", [8, 7])  # windows of 4 fill the grid, or stick out of it
@pytest.mark.parametrize(("name", "variant"), KINDS)
def test_maps_are_those_of_the_plans(name, variant, side):
    torch.manual_seed(1)
    encoder = tiny_encoder(image=(16 * side, 16 * side), depth=DEPTH)
    method = make_method(name, 0.5, variant=variant)
    try:
        apply_patch(encoder, method, range(method.first_layer(DEPTH), DEPTH), ResidualConsistency(0.5))
    except UsageError:
        assert side == 7  # methods that need an even grid
        return
    with recording(encoder) as decisions, torch.no_grad():
        encoder(torch.randn(2, 3, 16 * side, 16 * side))
    assert decisions
    for key, decision in decisions.items():
        block = int(key.split(".")[1])
        window = 0 if block == 1 else 4
        parts = {part: tensor.numpy() for part, tensor in decision.tensors.items()}
        _, found = groups_of(parts, (side, side), window, 4)
        wanted = decision.plan.token_groups(grid_of(encoder, block))
        assert np.array_equal(relabelled(found), relabelled(wanted)), key


def grid_of(encoder, block):
    from structsam_export.hosts import host_of

    return host_of(encoder).geometry(encoder).window_grid(block)


def relabelled(groups):
    """Groups numbered in the order of their first tokens."""
    _, first, number = np.unique(groups, return_index=True, return_inverse=True)
    return np.argsort(np.argsort(first))[number].reshape(groups.shape)
