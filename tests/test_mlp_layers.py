"""MLP policies by block: what is read, where each policy goes, what it computes and costs, and what is refused."""

from __future__ import annotations

import pytest
import torch
from tiny_model import tiny_encoder

from structsam_export.config import ExportConfig
from structsam_export.errors import UsageError
from structsam_export.geometry import GEOMETRIES
from structsam_export.macs import paper_macs, scheduled_macs
from structsam_export.methods.mlp import MergedMLP, ResidualConsistency
from structsam_export.methods.mlp_layers import parse_mlp
from structsam_export.patch import apply_roles, remove_patch
from structsam_export.schedule import resolve

B = GEOMETRIES["vit_b"]  # 12 blocks, 2, 5, 8 and 11 global


def policies(**options):
    """Policy of each block that has one."""
    roles = resolve(ExportConfig(**options), B).roles
    return {i: type(role.mlp) for i, role in sorted(roles.items()) if role.mlp is not None}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("merge", (("merge", None),)),
        ("merge:0-3", (("merge", "0-3"),)),
        ("merge:0-1,3, 5", (("merge", "0-1,3,5"),)),
        ("merge:0-3,residual-consistency:4-7", (("merge", "0-3"), ("residual-consistency", "4-7"))),
    ],
)
def test_what_is_read(text, expected):
    assert parse_mlp(text) == expected


def test_each_policy_goes_to_its_own_blocks():
    assert policies(mlp="merge:0,2,5-6") == dict.fromkeys((0, 2, 5, 6), MergedMLP)
    mixed = policies(mlp="merge:0-3,residual-consistency:4-7")
    assert mixed == {**dict.fromkeys(range(4), MergedMLP), **dict.fromkeys((4, 6, 7), ResidualConsistency)}
    # Merged MLPs belong to blocks that merge, whatever range is named for them.
    assert policies(rate="0.5:0-2", mlp="merge:0-11") == dict.fromkeys(range(3), MergedMLP)
    assert policies(mlp="residual-consistency:7", mlp_density=0.25) == {7: ResidualConsistency}


def test_all_layers_named_are_as_none_named():
    for name in ("merge", "residual-consistency"):
        named, bare = (resolve(ExportConfig(mlp=text), B).roles for text in (f"{name}:all", name))
        assert {i: (r.mlp, r.method, r.decisions) for i, r in named.items()} == {
            i: (r.mlp, r.method, r.decisions) for i, r in bare.items()
        }


@pytest.mark.parametrize(
    ("options", "parts"),
    [
        ({"mlp": "merge:0-3,residual-consistency:3-7"}, ("names layer 3 twice",)),
        ({"mlp": "merge:0,merge:1"}, ("names merge twice", "once")),
        ({"mlp": "0-3"}, ("Unknown MLP choice '0-3'",)),
        ({"mlp": "0-3,merge:1"}, ("Cannot read --mlp", "merge:0-3")),
        ({"mlp": "merged:0"}, ("Unknown MLP choice 'merged'",)),
        ({"mlp": "merge:12"}, ("Unknown layer 12",)),
        ({"mlp": "merge:"}, ("Cannot read layers",)),
        ({"rate": "0.5:3", "mlp": "merge:0-2"}, ("no effect in blocks 0, 1, 2", "can go to: 3")),
        ({"mlp": "residual-consistency:0-1"}, ("no effect in blocks 0, 1", "3, 4, 6, 7, 9, 10")),
        ({"mlp": "merge:0", "mlp_density": 0.5}, ("--mlp merge has no density",)),
        ({"method": "sparsesam", "mlp": "merge:0"}, ("needs a method that merges",)),
    ],
)
def test_what_is_refused(options, parts):
    with pytest.raises(UsageError) as raised:
        resolve(ExportConfig(**options), B)
    assert all(part in str(raised.value) for part in parts), raised.value


def test_costs_add_up_block_by_block():
    """A mixed schedule saves what its parts save one at a time."""

    def saved(**options):
        return paper_macs(B) - scheduled_macs(B, resolve(ExportConfig(**options), B))

    mixed = saved(rate="0.75:0-2,0.5:3,0:6-7", mlp="merge:0-3,residual-consistency:4-7")
    single = [saved(rate=f"{r}:{i}", mlp=f"merge:{i}") for i, r in ((0, 0.75), (1, 0.75), (2, 0.75), (3, 0.5))]
    assert mixed == sum(single) + 3 * saved(method="none", mlp="residual-consistency:4")


def test_blocks_without_a_policy_keep_their_stock_mlp():
    """The rows that go into each block's MLP tell; pads of windowed blocks count among merged rows."""
    from structsam_export.hosts import host_of

    encoder = tiny_encoder(global_layers=(1,))
    geometry, rows = host_of(encoder).geometry(encoder), {}
    for i, block in enumerate(encoder.blocks):
        block.mlp.register_forward_pre_hook(lambda m, x, i=i: rows.__setitem__(i, x[0].numel() // x[0].shape[-1]))
    image = torch.randn(1, 3, 80, 80, generator=torch.Generator().manual_seed(0))

    def run(**options):
        apply_roles(encoder, resolve(ExportConfig(**options), geometry).roles)
        with torch.no_grad():
            encoder(image)
        remove_patch(encoder)
        return dict(rows)

    assert run() == {0: 25, 1: 25, 2: 25}
    every, one = run(mlp="merge"), run(mlp="merge:1")
    assert one == {0: 25, 1: every[1], 2: 25} and every[1] < 25
    mixed = run(mlp="merge:0,residual-consistency:2")
    assert mixed[0] == every[0] and mixed[1] == 25
    assert mixed[2] == ResidualConsistency().kept((5, 5))


def names(**options):
    config = ExportConfig(**options)
    return config.folder_name(config.rate if config.rate is not None else 0.5)


def test_no_two_schedules_share_a_name():
    """Texts that differ, shares that differ in the seventh digit, long ones that differ at their end."""
    rates = [0.43, 0.4300001, 1 / 3, 0.333333, "0.5:0-3", "0.5:0,3", "0.5:0-2,0.25:3", "0.25:3,0.75:0-2"]
    rates += [",".join(f"{(i + j) / 100:.2f}:{i}" for i in range(40)) for j in range(5)]
    mlps = [{"mlp": m} for m in ("none", "merge", "merge:0", "merge:0-1", "merge:0,1", "residual-consistency:4")]
    mlps += [{"mlp": "merge:0,residual-consistency:4", "mlp_density": d} for d in (None, 0.25, 0.2500001)]
    mlps += [{"mlp": "residual-consistency:4", "mlp_density": 0.5}, {"mlp": "residual-consistency:45"}]
    made = [names(rate=rate, **mlp) for rate in rates for mlp in mlps]
    assert len(set(made)) == len(made) == len(rates) * len(mlps)
    assert all(len(name.encode()) <= 150 and not set(name) & set(":/, ") for name in made)
    assert names(rate=0.43) == "demo-structsam-r43-auto"
