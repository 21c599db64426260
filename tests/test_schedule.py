"""From a configuration to a method for every block: rates by layer, defaults, MLP policies, names, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from itertools import combinations

import pytest

from structsam_export.config import ExportConfig
from structsam_export.errors import ArtifactError, UsageError
from structsam_export.geometry import GEOMETRIES, EncoderGeometry
from structsam_export.job import Job
from structsam_export.methods import METHODS, make_method, method_class
from structsam_export.methods.base import MergeMethod
from structsam_export.methods.mlp import MergedMLP, ResidualConsistency, make_mlp
from structsam_export.methods.rates import Rates, parse_rate
from structsam_export.schedule import Request, resolve

B = GEOMETRIES["vit_b"]
LOCAL = EncoderGeometry(96, 16, (6, 6), 16, 3, 2, 32, 8, (4, 4, 4))  # no global block
ODD = EncoderGeometry(80, 16, (5, 5), 16, 3, 2, 32, 8, (4, 0, 4))


def schedule(geometry=B, **options):
    return resolve(ExportConfig(**options), geometry)


def refused(geometry=B, **options):
    """The message that a configuration is refused with."""
    with pytest.raises(UsageError) as raised:
        resolve(ExportConfig(**options), geometry)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (None, Rates()),
        (0.5, Rates(0.5)),
        (0, Rates(0.0)),
        ("0.5", Rates(0.5)),
        (" .5 ", Rates(0.5)),
        ("5e-1", Rates(0.5)),
        ("0.3:0-5,0.6:6-11", Rates(groups=((0.3, "0-5"), (0.6, "6-11")))),
        ("0.3:0,2,0.6:6-7", Rates(groups=((0.3, "0,2"), (0.6, "6-7")))),
        ("0.3: 0, 2 ,0.6 :6-7", Rates(groups=((0.3, "0,2"), (0.6, "6-7")))),
        ("0.5:global", Rates(groups=((0.5, "global"),))),
        ("0:last5,0.5:0", Rates(groups=((0.0, "last5"), (0.5, "0")))),
    ],
)
def test_rates(text, expected):
    assert parse_rate(text) == expected


@pytest.mark.parametrize("text", ["half", "", "0.5,0.6", "50%", "0,5", "a:0-5", "0.3:0-5,b:6", ":0-5", "1,0.5:0"])
def test_rates_that_are_no_numbers(text):
    with pytest.raises(UsageError, match="Cannot read rate .* Pass a fraction .0.5., or fractions by layers") as raised:
        parse_rate(text)
    assert f"'{text}'" in str(raised.value)


@pytest.mark.parametrize("text", ["0.3:", "0.3:0-5,", "0.3:0-5,0.6", "0.3:first", "0.3:0:1", "0.3:5-0", "0.3:global,0"])
def test_layers_that_cannot_be_read(text):
    assert "Cannot read layers" in refused(rate=text)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.3:0-5,0.6:6-11", {i: 0.3 if i < 6 else 0.6 for i in range(12)}),
        ("0.3:0,2,0.6:6-7", {0: 0.3, 2: 0.3, 6: 0.6, 7: 0.6}),
        ("0.6:7,0.3:0", {0: 0.3, 7: 0.6}),
        ("0.25:global", dict.fromkeys((2, 5, 8, 11), 0.25)),
        ("0.25:last5,0.5:0", {0: 0.5, **dict.fromkeys(range(7, 12), 0.25)}),
        ("0.25:all", dict.fromkeys(range(12), 0.25)),
    ],
)
def test_rates_by_layer(text, expected):
    made = schedule(rate=text)
    assert made.rates == expected
    assert made.blocks == {layer: make_method("structsam", rate) for layer, rate in expected.items()}
    rates = set(expected.values())
    assert made.rate == (rates.pop() if len(rates) == 1 else None)


@pytest.mark.parametrize(
    ("layers", "expected"),
    [
        (None, range(12)),
        ("all", range(12)),
        ("last5", range(7, 12)),
        ("global", (2, 5, 8, 11)),
        ("0,3,6-8", (0, 3, 6, 7, 8)),
    ],
)
def test_one_rate_for_all_chosen_layers(layers, expected):
    made = schedule(rate="0.25", layers=layers)
    assert made.rates == dict.fromkeys(expected, 0.25)
    assert made.rate == 0.25 and made.method == make_method("structsam", 0.25)


def test_no_rate_is_the_methods_own():
    for name in METHODS:
        made = schedule(method=name)
        assert made.rate == make_method(name).rate


def test_options_reach_the_method_of_every_block():
    made = schedule(method="pitome", rate="0.3:0,0.6:1", variant="grid", compat="thesis", params=(("margin", "0.9"),))
    assert made.blocks == {
        layer: make_method("pitome", rate, "grid", "thesis", margin=0.9) for layer, rate in ((0, 0.3), (1, 0.6))
    }
    aware = schedule(rate=0.5, prompt_aware=True, layers="0")
    assert aware.prompt_aware and aware.blocks == {0: make_method("structsam", 0.5, prompt_aware=True)}


@pytest.mark.parametrize(("model", "first"), [("vit_b", 3), ("vit_l", 6), ("vit_h", 8)])
def test_a_method_may_begin_later_unless_layers_are_given(model, first):
    """CubistMerge shrinks the grid a quarter of the way in."""
    geometry = GEOMETRIES[model]
    assert list(schedule(geometry, method="cubist").blocks) == list(range(first, geometry.depth))
    assert list(schedule(geometry, method="cubist", layers="all").blocks) == list(range(geometry.depth))
    assert list(schedule(geometry, method="tome").blocks) == list(range(geometry.depth))


def test_a_layer_named_twice():
    for rate in ("0.3:0-5,0.6:5-11", "0.3:global,0.6:2", "0.3:0,0.3:0"):
        assert f"--rate {rate} names layer" in refused(rate=rate)
        assert "twice" in refused(rate=rate)
    assert schedule(rate="0.3:0,0,1-1,1").rates == {0: 0.3, 1: 0.3}  # once, in one group


@pytest.mark.parametrize("layers", ["all", "0-5", "global"])
def test_layers_given_as_well(layers):
    message = refused(rate="0.3:0-5", layers=layers)
    assert "--rate 0.3:0-5 already names its layers. Leave --layers away." in message


@pytest.mark.parametrize("rate", [0.75, 0.51, "0.51", "0.3:0,0.51:1", "nan", -0.1])
def test_a_rate_out_of_range_names_the_maximum_of_the_variant(rate):
    assert "--rate 0.5 or less" in refused(method="tome", rate=rate)
    assert "--rate 0.5 or less" in refused(method="gradtome", variant="alternate", rate=rate)


@pytest.mark.parametrize(("rate", "layer"), [("0.3:12", 12), ("0.3:0,0.5:3-20", 12)])
def test_a_layer_the_encoder_does_not_have(rate, layer):
    assert f"Unknown layer {layer}: this encoder has blocks 0 to 11" in refused(rate=rate)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"method": "structsan"}, ("Did you mean 'structsam'", "tomesd")),
        ({"variant": "bms"}, ("has no variant 'bms'", "cell, bsm")),
        ({"compat": "thesis"}, ("Method 'structsam' has no --compat 'thesis'", "Leave --compat away")),
        ({"method": "tome", "compat": "theses"}, ("has no --compat 'theses'", "thesis")),
        ({"params": (("margin", "1"),)}, ("Method 'structsam' has no parameter 'margin'", "It has none")),
        ({"method": "pitome", "params": (("maargin", "1"),)}, ("no parameter 'maargin'", "margin, alpha")),
        ({"method": "pitome", "params": (("margin", "wide"),)}, ("margin='wide'", "is no float number")),
        ({"method": "pitome", "params": (("margin", "2"),)}, ("margin=2", "between -1 and 1")),
        ({"method": "pitome", "params": (("margin", "nan"),)}, ("margin=nan", "between -1 and 1")),
        ({"method": "tomesd", "params": (("seed", "1.5"),)}, ("seed='1.5'", "is no int number")),
        ({"method": "gradtome", "params": (("gradient", "sobol"),)}, ("gradient='sobol'", "sobel, central")),
        ({"mlp": "merged"}, ("Unknown MLP", "'merged'", "Did you mean 'merge'", "residual-consistency")),
        ({"method": "tome", "prompt_aware": True}, ("'tome' has no --prompt-aware form", "structsam")),
    ],
)
def test_what_a_message_says(options, expected):
    message = refused(**options)
    assert all(part in message for part in expected), message
    with pytest.raises(UsageError) as early:  # also before a model is loaded
        Request.of(ExportConfig(**options))
    assert str(early.value) == message


@pytest.mark.parametrize("name", ["rate", "variant", "compat", "prompt_aware", "name"])
def test_an_option_given_as_a_parameter(name):
    assert f"has no parameter '{name}'" in refused(params=((name, "0.5"),))


def test_parameters_are_numbers_of_the_type_of_their_default():
    method = schedule(method="tomesd", params=(("seed", "7"),)).method
    assert method.seed == 7 and type(method.seed) is int
    method = schedule(method="pitome", params=(("alpha", "2"),)).method
    assert method.alpha == 2.0 and type(method.alpha) is float


def test_no_layers_at_all():
    assert "Cannot read layers ''" in refused(layers="")


# MLP policies.


def test_mlp_policies_by_name():
    assert make_mlp("none") is None
    assert make_mlp("merge") == MergedMLP()
    assert make_mlp("residual-consistency") == ResidualConsistency(0.5)
    assert make_mlp("residual-consistency", 0.3) == ResidualConsistency(0.3)
    assert schedule(mlp="residual-consistency", mlp_density=0.3).mlp == ResidualConsistency(0.3)
    assert schedule().mlp is None


@pytest.mark.parametrize("density", [0.0, -0.5, 1.01, float("nan")])
def test_a_density_outside_of_its_range(density):
    message = refused(mlp="residual-consistency", mlp_density=density)
    assert f"density {density:g} is out of range" in message and "above 0 and at most 1" in message


@pytest.mark.parametrize("mlp", ["none", "merge"])
@pytest.mark.parametrize("density", [0.5, 0.0, 2.0])
def test_a_density_with_a_policy_that_has_none(mlp, density):
    message = refused(mlp=mlp, mlp_density=density)
    assert f"--mlp {mlp} has no density" in message and "--mlp-density" in message


@pytest.mark.parametrize("method", METHODS)
def test_the_merged_mlp_needs_a_method_that_merges(method):
    if issubclass(method_class(method), MergeMethod):
        assert schedule(method=method, mlp="merge").mlp == MergedMLP()
    else:
        assert "--mlp merge needs a method that merges tokens" in refused(method=method, mlp="merge")


def test_the_dense_model_keys_and_grids_merge_no_tokens():
    """The three that the test above expects to be refused."""
    assert {name for name in METHODS if not issubclass(method_class(name), MergeMethod)} == {
        "none",
        "sparsesam",
        "cubist",
    }


@pytest.mark.parametrize("method", ["none", "structsam", "tome"])
def test_residual_consistency_needs_a_global_block(method):
    message = refused(LOCAL, method=method, mlp="residual-consistency")
    assert "global attention block" in message and "has none" in message
    assert resolve(ExportConfig(method=method), LOCAL).mlp is None


def test_sparsesam_needs_an_even_grid():
    assert "even token grid" in refused(ODD, method="sparsesam")
    assert "even token grid" not in refused(ODD, method="sparsesam", rate=0.9)


def test_the_grid_shrinks_once_and_for_all_blocks_that_follow():
    assert list(schedule(method="cubist", rate="0.5:8-11").blocks) == [8, 9, 10, 11]
    for options in ({"layers": "0-5"}, {"layers": "3,5-11"}, {"rate": "0.3:3-5,0.6:6-11"}, {"layers": "global"}):
        message = refused(method="cubist", **options)
        assert "'cubist' reduces the grid once" in message and "-11" in message


# What is kept of a configuration.

EVERY = ExportConfig(
    model="vit_b",
    checkpoint="a.pth",
    preprocessing="medsam",
    method="pitome",
    rate="0.3:0-5,0.6:6-11",
    variant="grid",
    layers="0-5",
    compat="thesis",
    params=(("margin", "0.9"), ("alpha", "2")),
    prompt_aware=True,
    mlp="residual-consistency",
    mlp_density=0.3,
    precision="bf16",
    backend="none",
    target="sm86",
    opset=23,
    form="attention",
    batch=2,
    images=("a.jpg", "b.jpg"),
)


@pytest.mark.parametrize("config", [ExportConfig(), EVERY, ExportConfig(rate=0.5), ExportConfig(rate=0.0)])
def test_a_configuration_survives_json(config):
    text = json.dumps(config.to_dict())
    again = ExportConfig.from_dict(json.loads(text))
    assert again == config
    assert hash(again) == hash(config)
    assert ExportConfig.from_dict(config.to_dict()) == config


def test_every_field_is_kept():
    """A field that is forgotten would come back as its default."""
    plain = vars(ExportConfig())
    fused = replace(EVERY, form="portable", plugins="token_merge")  # a form of one runtime takes no plugins
    assert ExportConfig.from_dict(fused.to_dict()) == fused
    assert [name for name, value in vars(EVERY).items() if value == plain[name]] == ["plugins"]
    assert {"schema", *plain} == set(EVERY.to_dict())


@pytest.mark.parametrize("data", [{"schema": 1, "colour": "red"}, {"schema": 2}, {}, {"method": "tome"}])
def test_a_configuration_of_another_version(data):
    with pytest.raises(ArtifactError, match="Export again"):
        ExportConfig.from_dict(data)


def test_a_configuration_of_the_version_before_the_new_fields():
    assert ExportConfig.from_dict({"schema": 1, "method": "tome", "images": []}) == ExportConfig(method="tome")


NAMED = {
    "bare": {},
    "another model": {"model": "vit_b"},
    "a checkpoint that is read": {"checkpoint": "w.pth"},
    "another preprocessing": {"preprocessing": "medsam"},
    "another method": {"method": "tome"},
    "another rate": {"rate": 0.25},
    "rates by layer": {"rate": "0.5:0-5"},
    "other rates by layer": {"rate": "0.5:0,5"},
    "two rates": {"rate": "0.5:0-5,0.25:6-7"},
    "two rates, otherwise": {"rate": "0.25:0-5,0.5:6-7"},
    "a variant": {"variant": "bsm"},
    "layers": {"layers": "global"},
    "other layers": {"layers": "0,5"},
    "a range of layers": {"layers": "0-5"},
    "compat": {"method": "tome", "compat": "thesis"},
    "a parameter": {"method": "tomesd", "params": (("seed", "1"),)},
    "the parameter otherwise": {"method": "tomesd", "params": (("seed", "2"),)},
    "no parameter": {"method": "tomesd"},
    "two parameters": {"method": "pitome", "params": (("margin", "1"), ("alpha", "2"))},
    "the same otherwise": {"method": "pitome", "params": (("margin", "2"), ("alpha", "1"))},
    "prompt-aware": {"prompt_aware": True},
    "merged MLP": {"mlp": "merge"},
    "fewer MLPs": {"mlp": "residual-consistency"},
    "a quarter of the MLPs": {"mlp": "residual-consistency", "mlp_density": 0.25},
    "FP32": {"precision": "fp32"},
    "another form": {"precision": "fp32", "form": "ort-cpu"},
    "a third form": {"precision": "fp32", "form": "attention", "opset": 23, "backend": "none"},
    "a third form, FP16": {"precision": "fp16", "form": "attention", "opset": 23},
}


def folder(**options):
    """Of a job, whose precision is no longer "auto"."""
    config = ExportConfig(**{"rate": 0.5, "precision": "fp16", **options})
    return config.folder_name(config.rate)


def test_configurations_that_differ_have_folders_that_differ():
    names = {what: folder(**options) for what, options in NAMED.items()}
    assert [(a, b) for a, b in combinations(names, 2) if names[a] == names[b]] == []


@pytest.mark.parametrize("what", NAMED)
def test_a_folder_name_is_one_plain_word(what):
    name = folder(**NAMED[what])
    assert not set(name) & set("/\\:*?\"<>|, '")
    assert name == name.strip(".")


def test_folder_names():
    assert folder() == "demo-structsam-r50-fp16"
    assert folder(rate=0.125) == "demo-structsam-r12.5-fp16"
    assert folder(rate="0.3:0-5,0.6:6-11") == "demo-structsam-r0.3@0-5+0.6@6-11-fp16"
    assert folder(layers="0,3") == "demo-structsam-0+3-r50-fp16"
    assert folder(prompt_aware=True, mlp="merge") == "demo-structsam-prompt-mlp_merge-r50-fp16"
    assert folder(precision="fp32", form="portable") == "demo-structsam-r50-fp32"
    assert folder(precision="fp32", form="ort-cpu") == "demo-structsam-r50-fp32-ort-cpu"
    assert folder(form="attention", opset=23) == "demo-structsam-r50-fp16-attention"


def test_all_layers_of_a_method_that_begins_later():
    assert folder(method="cubist", layers="all") != folder(method="cubist")


@pytest.fixture(scope="module")
def demo():
    """Jobs on the bundled model, which is loaded once."""
    from structsam_export.models import load_model

    loaded = load_model("demo")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("structsam_export.models.load_model", lambda *_, **__: loaded)
        yield lambda **options: Job.prepare(ExportConfig(**options))


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"rate": "0.25"},
        {"method": "none"},
        {"layers": "global"},
        {"rate": "0.3:0-3,0.6:4-7"},
        {"rate": "0.5:0-3"},
    ],
    ids=str,
)
def test_a_job_keeps_a_configuration_that_gives_the_same_job_again(demo, options):
    """The manifest's configuration is resolved once more when a folder is validated."""
    job = demo(**options)
    again = resolve(job.config, job.loaded.geometry)
    assert (again.blocks, again.mlp) == (job.schedule.blocks, job.schedule.mlp)
    assert job.config.rate is not None


def test_the_default_folder_names_the_methods_rate(demo):
    assert demo().default_folder.name == "demo-structsam-r50-fp16"
    assert demo(method="none", rate=0.5).default_folder.name == "demo-none-r0-fp16"
    assert demo(rate="0.3:0-3,0.6:4-7").default_folder.name == "demo-structsam-r0.3@0-3+0.6@4-7-fp16"
    assert demo(form="ort-cpu").default_folder.name == "demo-structsam-r50-fp32-ort-cpu"


# Precision and form.

EVERY_VARIANT = [(name, variant) for name in METHODS for variant in method_class(name).VARIANTS]
KEPT = {name: getattr(method_class(name), "FP32_VARIANTS", ()) for name in METHODS}


@pytest.mark.parametrize(("method", "variant"), EVERY_VARIANT)
def test_precision_is_chosen_by_method(method, variant):
    made = schedule(method=method, variant=variant)
    expected = "fp32" if variant in KEPT[method] else "fp16"
    assert made.fp16_changes_decisions is (expected == "fp32")
    for form in ("portable", "attention"):
        assert made.precision("auto", form) == expected
    assert made.precision("auto", "ort-cpu") == "fp32"
    for asked in ("fp16", "fp32", "bf16"):  # whoever asks gets it
        assert made.precision(asked, "portable") == asked


def test_variants_that_keep_fp32_are_variants():
    """And few: the two whose decisions were measured not to survive FP16."""
    assert all(set(kept) <= set(method_class(name).VARIANTS) for name, kept in KEPT.items())
    assert {name for name, kept in KEPT.items() if kept} == {"pitome", "gradtome"}
    assert KEPT["pitome"] == KEPT["gradtome"] == ("alternate",)


def test_a_job_has_a_precision(demo, capsys):
    assert demo().config.precision == "fp16"
    assert demo(precision="bf16").config.precision == "bf16"
    assert demo(form="ort-cpu").config.precision == "fp32"
    assert capsys.readouterr().err.count("do not survive") == 0
    kept = {"method": "pitome", "variant": "alternate"}
    assert demo(**kept, form="ort-cpu").config.precision == "fp32"
    assert demo(**kept, precision="fp16").config.precision == "fp16"
    assert capsys.readouterr().err.count("do not survive") == 0, "FP16 was asked for, or is no choice"
    assert demo(**kept).config.precision == "fp32"
    said = " ".join(capsys.readouterr().err.split())
    assert "decisions of pitome alternate do not survive FP16; pass --precision fp16 for all the same" in said


def test_a_method_that_keeps_fp32_has_no_attention_for_tensorrt(demo):
    """Known only when "auto" is resolved."""
    options = {"method": "pitome", "variant": "alternate", "form": "attention", "opset": 23}
    with pytest.raises(UsageError, match="FP16 and BF16 only"):
        demo(**options)
    assert demo(**options, backend="none").config.precision == "fp32"


@pytest.mark.parametrize(
    "options",
    [
        {"form": "attention", "opset": 23},
        {"form": "attention", "opset": 23, "precision": "bf16"},
        {"form": "attention", "opset": 23, "precision": "fp32", "backend": "none"},
        {"form": "ort-cpu"},
        {"form": "ort-cpu", "precision": "fp32", "backend": "none"},
        {"form": "portable", "precision": "fp32", "backend": "tensorrt", "opset": 23},
    ],
    ids=lambda options: "-".join(map(str, options.values())),
)
def test_forms_one_can_have(options):
    assert {name: getattr(ExportConfig(**options), name) for name in options} == options


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"form": "ort"}, "Unknown form 'ort'. Choose from: portable, attention, ort-cpu"),
        ({"form": "attention"}, "--opset 23"),
        ({"form": "attention", "opset": 22}, "--opset 23"),
        ({"form": "attention", "opset": 23, "precision": "fp32"}, "--precision fp16 or --backend none"),
        ({"form": "attention", "opset": 23, "precision": "fp32", "backend": "tensorrt"}, "--backend none"),
        ({"form": "ort-cpu", "backend": "tensorrt"}, "which tensorrt has not"),
        ({"form": "ort-cpu", "backend": "tensorrt-rtx"}, "which tensorrt-rtx has not"),
        ({"form": "ort-cpu", "precision": "fp16"}, "--precision fp32, not fp16"),
        ({"form": "ort-cpu", "precision": "bf16"}, "--precision fp32, not bf16"),
    ],
)
def test_forms_one_cannot_have(options, message):
    with pytest.raises(UsageError) as raised:
        ExportConfig(**options)
    assert message in str(raised.value)
