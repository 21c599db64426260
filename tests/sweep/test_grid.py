"""What --methods, --rates and --layers mean, and what is left out."""

from __future__ import annotations

import pytest

from structsam_export.config import ExportConfig
from structsam_export.errors import UsageError
from structsam_export.methods import METHODS, method_class
from structsam_export.sweep.grid import jobs_of, parse


def test_all_is_the_whole_registry():
    grid = parse("all", "0.25,0.5", "all")
    assert grid.forms == tuple((n, v, "none") for n in METHODS if n != "none" for v in method_class(n).VARIANTS)
    configs, notes = grid.configs(ExportConfig())
    assert len(configs) == 2 * len(grid.forms) and notes == []
    assert {config.layers for config in configs} == {None}


def test_names_variants_and_sets_of_blocks():
    grid = parse("tomesd:rand25,structsam", "0.5,.5,0.3", "last5,0+3+6-7")
    expected = [("tomesd", "rand25"), *(("structsam", variant) for variant in method_class("structsam").VARIANTS)]
    assert grid.forms == tuple((*form, "none") for form in expected)
    assert (grid.rates, grid.layers) == ((0.5, 0.3), ("last5", "0,3,6-7"))
    assert len(grid.configs(ExportConfig())[0]) == len(expected) * 2 * 2


def test_mlp_policies_are_configurations_of_their_own():
    grid = parse("structsam:cell,structsam:cell+merge,tome+residual-consistency", "0.5", "all")
    assert [form.mlp for form in grid.forms] == ["none", "merge", "residual-consistency"]
    configs, _ = grid.configs(ExportConfig())
    assert [(c.method, c.mlp) for c in configs] == [(f.method, f.mlp) for f in grid.forms]


def test_rates_beyond_the_largest_are_left_out_with_a_note():
    configs, notes = parse("tome,structsam:cell", "0.5,0.6,0.7", "all").configs(ExportConfig())
    assert [(c.method, c.rate) for c in configs] == [
        ("tome", 0.5),
        ("structsam", 0.5),
        ("structsam", 0.6),
        ("structsam", 0.7),
    ]
    assert notes == ["tome alternate goes to rate 0.5 only: 0.6, 0.7 left out."]
    with pytest.raises(UsageError, match="Nothing is left to try"):
        parse("tome", "0.6", "all").configs(ExportConfig())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("structsma", "0.5", "all"), "Did you mean 'structsam'"),
        (("tome:fast", "0.5", "all"), "no variant 'fast'"),
        (("none", "0.5", "all"), "Leave 'none' out"),
        (("tome,", "0.5", "all"), "--methods"),
        (("tome+merged", "0.5", "all"), "Did you mean 'merge'"),
        (("tome", "half", "all"), "Cannot read rate"),
        (("tome", "1.5", "all"), "no fraction"),
        (("tome", "0", "all"), "no fraction"),
        (("tome", "0.5", ""), "--layers"),
    ],
)
def test_wrong_lists(given, message):
    with pytest.raises(UsageError, match=message):
        parse(*given)


def test_what_a_model_does_not_allow():
    from structsam_export.models import load_model

    loaded = load_model("demo")

    def jobs(*given):
        return jobs_of(parse(*given).configs(ExportConfig())[0], loaded)

    found, notes = jobs("cubist:window,tome", "0.25,0.5", "all,global")
    assert [(job.config.method, job.config.layers) for job in found] == [("cubist", None)] * 2 + [
        ("tome", None),
        ("tome", None),
        ("tome", "global"),
        ("tome", "global"),
    ]
    assert len(notes) == 1 and "cubist window global" in notes[0] and "reduces the grid once" in notes[0]
    with pytest.raises(UsageError, match="Nothing is left to try"):
        jobs("cubist", "0.5", "global")
    with pytest.raises(UsageError, match="Unknown layer 99"):
        jobs("tome", "0.5", "all,99")
