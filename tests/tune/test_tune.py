"""The command `tune` on a tiny model: figures, resuming, photos without masks, recipes, bad input."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from random import Random

import pytest
import torch
from evaluation_sets import scene, write_folder
from PIL import Image

from structsam_export import recipes
from structsam_export.config import ExportConfig
from structsam_export.errors import ArtifactError
from structsam_export.evaluate import command as evaluation
from structsam_export.evaluate.store import Store
from structsam_export.job import loaded_for
from structsam_export.macs import graph_macs
from structsam_export.tune import command, costs, measure, steps
from structsam_export.tune.search import UNKNOWN, Point
from structsam_export.tune.space import macs_ratio

WORK = ("--model", "tiny", "--methods", "structsam:cell", "--rates", "0.5", "--minutes", "1", "--jobs", "1")


@pytest.fixture
def run(in_process, tiny_model):
    """Run `tune` on the tiny model; returns (exit code, stdout, stderr in one line)."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # figures of different numbers of threads differ in the last digits

    def run(*arguments):
        code, out, err = in_process("tune", "--checkpoint", tiny_model, *WORK, *arguments)
        return code, out, " ".join(err.split())

    yield run
    torch.set_num_threads(threads)


def test_figures_files_and_resuming(run, tiny_model, tmp_path, monkeypatch):
    place = write_folder(tmp_path / "discs", 4)
    files = ("--plot", "made.png", "--page", "made.html")
    code, out, err = run("--dataset", place, "--target-macs", "0.9", *files, "--output", "one", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert {"selection": 2, "held_out": 2, "true_masks": True}.items() <= report["images"].items()
    chosen = report["tuned"][report["chosen"]]
    assert chosen["macs_ratio"] < 1 and "held-out images" in err
    with Image.open("made.png") as picture:
        assert picture.width > 500
    page = (tmp_path / "made.html").read_text()
    assert chosen["name"] in page and "discs" in page

    # The held-out loss is what `evaluate` finds on those images.
    _, held = measure.halves(evaluation.opened(str(place), None, None)[1])
    config = ExportConfig(model="tiny", checkpoint=str(tiny_model), **chosen["schedule"])
    other = evaluation.run(config, None, str(place))
    scores = [image["scores"] for image in other["per_image"] if image["name"] in {s.name for s in held}]
    assert len(scores) == 2
    lost = [one["dense"]["iou"] - next(v["iou"] for k, v in one.items() if k != "dense") for one in scores]
    assert chosen["held_out"]["mean"] == pytest.approx(sum(lost) / 2, abs=1e-6)

    # Stopped half-way and begun again: the same figures, and only what was missing is computed.
    real, calls = measure.scored, []

    def counted(*arguments):
        calls.append(arguments)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(*arguments)

    monkeypatch.setattr(measure, "scored", counted)
    code, _, err = run("--dataset", place, "--target-macs", "0.9", "--output", "two")
    assert code == 130 and "continues from there" in err
    calls.append(())  # the fourth is over
    code, out, err = run("--dataset", place, "--target-macs", "0.9", "--output", "two", "--json")
    assert code == 0, err
    again = json.loads(out)
    for name in ("sensitivity", "uniform", "tuned", "chosen", "verdict"):
        assert again[name] == report[name], name
    before = len(calls)
    assert run("--dataset", place, "--target-macs", "0.9", "--output", "two")[0] == 0 and len(calls) == before


def test_more_images_than_the_time_pays_for(run, tmp_path, monkeypatch):
    """Some of them are used, the report is of those, and a message says how to use all."""
    place = write_folder(tmp_path / "discs", 6, objects=(1,) * 6)
    monkeypatch.setattr(steps, "FEWEST_JUDGED", 2)
    monkeypatch.setattr(steps, "MARGIN", 1e-6)  # no time at all
    options = ("--dataset", place, "--target-macs", "0.9", "--output", "few", "--json")
    code, out, err = run(*options)
    assert code == 0, err
    assert "4 of 6 images fit into the time" in err and "--minutes" in err
    report = json.loads(out)
    assert {"selection": 2, "held_out": 2, "of": 6}.items() <= report["images"].items()
    assert "on 2 held-out images" in err


@pytest.mark.parametrize("seed", range(200))
def test_a_plan_fits_the_time(seed):
    """Counted step by step, as `tune` works; unless even the least of everything is more."""
    rng = Random(seed)
    calls, alone, common = rng.choice([50, 500, 3000, 20_000]), rng.randint(5, 300), rng.randint(3, 12)
    finalists, selection, held = rng.randint(4, 8), rng.randint(2, 2000), rng.randint(1, 2000)
    plan = steps.counts(calls, alone, common, finalists, selection, held)
    dense = plan["selection"] + plan["held_out"]
    judged = dense * (common + plan["finalists"])
    needed = plan["sensitivity"] * alone + dense + judged
    least = plan["sensitivity"] <= steps.FEWEST or max(plan["selection"], plan["held_out"]) <= steps.FEWEST_JUDGED
    assert needed <= calls or least
    assert 1 <= plan["sensitivity"] <= plan["selection"] <= selection and 1 <= plan["held_out"] <= held
    assert finalists <= plan["finalists"] <= finalists + 3
    if plan["finalists"] > finalists:
        assert (plan["selection"], plan["held_out"]) == (selection, held)


def test_latency_is_the_cost(run, tmp_path, monkeypatch):
    """Times that are a closed form of MACs: `tune` finds what it finds for MACs, each kind of block timed once."""
    asked = []

    def timed(self, configs):
        asked.extend(configs.values())
        return {key: macs_ratio(config, self.loaded.geometry) for key, config in configs.items()}

    monkeypatch.setattr(costs.Latency, "timed", timed)
    place = write_folder(tmp_path / "discs", 4)
    options = ("--dataset", place, "--densities", "0.5", "--output", "same", "--json")
    code, out, err = run("--target-latency", "0.9", *options)
    assert code == 0, err
    report = json.loads(out)
    assert report["cost"] == "latency on ort-cpu" and "of the latency on ort-cpu saved" in err
    for row in report["tuned"]:
        assert row["predicted_cost"] == pytest.approx(row["cost"], abs=2e-3)
    assert len(asked) == len(set(asked)) and len([c for c in asked if c.mlp == "none"]) <= 2 + 3 + len(report["tuned"])
    recipe = recipes.read(tmp_path / "same" / "recipe.json")
    assert recipe["measured"]["cost"] == {
        "of": "latency on ort-cpu",
        "ratio": report["tuned"][report["chosen"]]["cost"],
    }
    asked.clear()
    code, out, err = run("--target-macs", "0.9", *options)
    assert code == 0 and not asked, err
    counted = json.loads(out)
    assert counted["tuned"][counted["chosen"]]["name"] == report["tuned"][report["chosen"]]["name"]
    assert run("--target-latency", "0.9", *options)[0] == 0 and not asked  # kept
    before = len(json.loads((tmp_path / "same" / costs.FILE).read_text())["ratios"])
    monkeypatch.setattr(command, "check_runner", lambda name: None)
    assert run("--target-latency", "0.9", "--runner", "openvino-f32", *options)[0] == 0
    assert len(json.loads((tmp_path / "same" / costs.FILE).read_text())["ratios"]) == 2 * before  # of another runtime


def test_latencies_that_do_not_add_up(run, tmp_path, monkeypatch):
    """Whole schedules cost .04 more than their parts promise: uniform ones tell, and the first finalist fits."""
    whole = []

    def timed(self, configs):
        whole.extend(config for config in configs.values() if isinstance(config.rate, float))  # behind all parts
        more = 0.04 if whole else 0.0
        return {key: macs_ratio(config, self.loaded.geometry) + more for key, config in configs.items()}

    monkeypatch.setattr(costs.Latency, "timed", timed)
    place = write_folder(tmp_path / "discs", 4)
    code, out, err = run("--dataset", place, "--target-latency", "0.97", "--mlps", "none", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["shift"] == pytest.approx(0.04, abs=2e-3)
    first = report["tuned"][0]
    assert first["cost"] <= 0.97 and first["cost"] == pytest.approx(first["predicted_cost"], abs=2e-3)


def test_the_shift_is_that_of_the_nearest_schedules():
    guesses = [Point(cost, 0.0, ()) for cost in (-0.1, -0.2, -0.3, -0.4, -0.5)] + [UNKNOWN]
    ratios = [0.95, 0.84, 0.73, 0.62, 0.51, 0.7]  # .05, .04, ... more than predicted
    assert steps.shift_of(ratios, guesses, 0.5) == pytest.approx(0.02)
    assert steps.shift_of(ratios, guesses, 0.9) == pytest.approx(0.04)
    assert steps.shift_of(ratios, guesses, None) == pytest.approx(0.03)
    assert steps.shift_of(ratios[-1:], guesses[-1:], 0.5) == 0


@pytest.mark.slow
@pytest.mark.parametrize("runner", ["ort-cpu", "openvino-f32"])
def test_encoders_are_exported_and_timed(tiny_model, tmp_path, runner):
    """What is timed is the schedule asked for: fewer MACs than the unpatched encoder, and a time of its own."""
    loaded = loaded_for(ExportConfig(model="tiny", checkpoint=str(tiny_model), precision="fp32"))
    meter = costs.Latency(loaded, runner, Store(tmp_path / "kept", {}), threads=1)
    config = ExportConfig(model="tiny", checkpoint=str(tiny_model), rate=0.5, precision="fp32")
    files = dict(meter.exported({"dense": replace(config, method="none", rate=None), "half": config}, tmp_path))
    assert graph_macs(files["half"]) < graph_macs(files["dense"])
    (ratio,) = meter.ratios([config])
    assert ratio > 0 and meter.ratios([config]) == [ratio]
    assert meter.ratios([replace(config, method="none", rate=None)]) == [1.0]


def test_a_recipe_is_exported_as_it_says(in_process, tiny_model, tmp_path):
    """Exactly its schedule, which the manifest names together with the recipe."""
    recipes.write(tmp_path / "r.json", GOOD)
    options = ("--model", "tiny", "--checkpoint", tiny_model, "--backend", "none", "--precision", "fp32")
    code, _, err = in_process("export", "--recipe", "r.json", *options, "--output", "exported")
    assert code == 0, err
    assert "made for other weights" in " ".join(err.split())
    manifest = json.loads((tmp_path / "exported" / "manifest.json").read_text())
    assert {"method": "structsam", "rate": "0.5:0", "mlp": "merge:0"}.items() <= manifest["config"].items()
    assert manifest["results"]["recipe"] == recipes.origin(tmp_path / "r.json", GOOD)


def test_photos_without_masks(run, tmp_path):
    folder = tmp_path / "shots"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(scene(i)[0]).save(folder / f"p{i}.png")
    code, out, err = run("--photos", folder, "--max-loss", "0.5", "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["images"]["true_masks"] is False and report["images"]["set"] == "shots"
    rows = [*report["uniform"], *report["tuned"]]
    assert all(row["held_out"]["mean"] >= 0 for row in rows) and any(row["held_out"]["mean"] > 0 for row in rows)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("--max-loss", "0.01", "--target-macs", "0.5"), 2, "one of --max-loss, --target-macs"),
        (("--target-latency", "1.5"), 2, "no share"),
        (("--target-macs", "0.5", "--runner", "ort-cpu"), 2, "--target-latency"),
        (("--runner", "ort-cpy"), 2, "Did you mean 'ort-cpu'"),
        (("--runner", "eager"), 2, "Unknown runner"),
        (("--densities", "0"), 2, "densities"),
        (("--dataset", "bundled", "--photos", "x"), 2, "not both"),
        (("--mlps", "merged"), 2, "Unknown MLP choice 'merged'"),
        (("--methods", "structsan"), 2, "Did you mean 'structsam'"),
        (("--methods", "cubist"), 2, "changes the grid"),
        (("--prompt", "words"), 2, "Unknown prompt"),
        (("--photos", "nowhere"), 5, "no folder nowhere"),
        (("--plot", "a.bmp"), 2, "Cannot draw"),
        (("--limit", "2", "--dataset", "bundled-coins"), 5, "too few"),
    ],
)
def test_bad_requests(run, tmp_path, arguments, code, message):
    found, _, err = run(*arguments)
    assert found == code and message in err, err
    assert not (tmp_path / "evaluations").exists()


GOOD = recipes.recipe_of(
    ExportConfig(method="structsam", variant="cell", rate="0.5:0", mlp="merge:0"),
    {"name": "tiny", "weights": "0" * 64, "preprocessing": "sam"},
    {"set": "discs", "sha256": "1" * 64, "selection": 2, "held_out": 2, "true_masks": True},
    {
        "macs_ratio": 0.9,
        "cost": {"of": "MACs", "ratio": 0.9},
        "selection": {"mean": 0.0, "low": None, "high": None},
        "held_out": None,
    },
)


def test_a_recipe_comes_back_as_it_was(tmp_path):
    recipes.write(tmp_path / "r.json", GOOD)
    found = recipes.read(tmp_path / "r.json")
    assert found == GOOD
    config = ExportConfig(method="tome", rate=0.25, precision="fp32", batch=2)
    assert recipes.applied(found, config) == ExportConfig(
        method="structsam", variant="cell", rate="0.5:0", mlp="merge:0", precision="fp32", batch=2
    )


RECIPES = sorted((Path(__file__).parents[2] / "engines" / "recipes").glob("*.json"))


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_the_demo_models_recipes_are_for_its_weights_and_save_what_they_say(path):
    recipe, loaded = recipes.read(path), loaded_for(ExportConfig(model="demo", precision="fp32"))
    assert recipe["model"]["weights"] == loaded.sha256
    config = recipes.applied(recipe, ExportConfig(model="demo", precision="fp32"))
    assert macs_ratio(config, loaded.geometry) == pytest.approx(recipe["measured"]["macs_ratio"])
    assert recipe["images"]["held_out"] >= 40 and recipe["measured"]["held_out"]["high"] is not None


def test_the_demo_model_has_recipes():
    assert len(RECIPES) >= 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 2}, "version 1"),
        ({"kind": "cake"}, "no recipe"),
        ({"model": {"name": "x"}}, "lacks 'weights'"),
        ({"model": {**GOOD["model"], "weights": "abc"}}, "SHA-256"),
        ({"schedule": {**GOOD["schedule"], "method": "structsan"}}, "Did you mean"),
        ({"schedule": {**GOOD["schedule"], "colour": "red"}}, "unknown 'colour'"),
        ({"schedule": {**GOOD["schedule"], "rate": [1]}}, "recipe.schedule.rate"),
        ({"schedule": {**GOOD["schedule"], "params": [["a"]]}}, "pairs"),
        ({"measured": None}, "recipe.measured"),
    ],
)
def test_recipes_that_are_none(tmp_path, change, message):
    (tmp_path / "r.json").write_text(json.dumps({**GOOD, **change}))
    with pytest.raises(ArtifactError, match=message):
        recipes.read(tmp_path / "r.json")


@pytest.mark.parametrize("text", ["", "[]", "{}", "{", "null"])
def test_files_that_are_no_recipe(tmp_path, text):
    (tmp_path / "r.json").write_text(text)
    with pytest.raises(ArtifactError):
        recipes.read(tmp_path / "r.json")
    with pytest.raises(ArtifactError, match="no recipe"):
        recipes.read(tmp_path / "gone.json")


def test_a_recipe_for_other_weights_and_options_it_decides(in_process, tmp_path, capsys):
    recipes.write(tmp_path / "r.json", GOOD)
    code, _, err = in_process("export", "--recipe", "r.json", "--method", "tome")
    assert code == 2 and "already says" in " ".join(err.split())
    recipes.say_other_weights(recipes.origin(tmp_path / "r.json", GOOD), "f" * 64)
    assert "made for other weights" in " ".join(capsys.readouterr().err.split())
