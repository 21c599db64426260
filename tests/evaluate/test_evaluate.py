"""The library's function and its store: what is computed again, what is kept, what is refused."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from evaluation_sets import write_folder

from structsam_export.datasets import open_dataset
from structsam_export.errors import BadInputError, UsageError
from structsam_export.evaluate import evaluate
from structsam_export.evaluate.store import Store


class Filler:
    """A model that fills its prompt's box, less `inset` pixels; it counts its calls, and may be interrupted."""

    size, preprocessing = 64, "sam"

    def __init__(self, name="dense", inset=0, stop_at=None):
        self.name, self.identity, self.inset, self.stop_at = name, {"inset": inset}, inset, stop_at
        self.calls = 0

    def logits(self, case):
        if self.calls == self.stop_at:
            raise KeyboardInterrupt
        self.calls += 1
        low = np.full((len(case.coords), 16, 16), -5, np.float32)
        for plane, ((x0, y0), (x1, y1)) in zip(low, case.coords / 4):
            plane[round(y0) + self.inset : round(y1) - self.inset, round(x0) + self.inset : round(x1)] = 5
        return low


@pytest.fixture
def samples(tmp_path):
    return open_dataset(str(write_folder(tmp_path / "set", 4))).samples()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "out", {"dataset": "set"})


def test_results(samples):
    found = evaluate(samples, [Filler(), Filler("less", 1)])
    assert [i["name"] for i in found.images] == ["s0", "s1", "s2", "s3"]
    assert [i["objects"] for i in found.images] == [1, 2, 1, 1] and found.objects == 5
    for image, sample in zip(found.images, samples):
        assert image["digest"] == sample.digest() and list(image["scores"]) == ["dense", "less"]
        each = image["scores"]["dense"]["each"]["iou"]
        assert len(each) == image["objects"] and image["scores"]["dense"]["iou"] == pytest.approx(np.mean(each))
        assert image["scores"]["less"]["iou"] < image["scores"]["dense"]["iou"]
        assert image["box_filled"] == pytest.approx(np.pi / 4, abs=0.02)  # discs
    assert json.loads(json.dumps(found.images)) == found.images


def test_interrupted_and_resumed(samples, store):
    expected = evaluate(samples, [Filler(), Filler("less", 1)])
    with pytest.raises(KeyboardInterrupt):
        evaluate(samples, [Filler(), Filler("less", 1, stop_at=2)], store=store)
    assert sorted(p.name for p in store.images.iterdir()) == ["s0.json", "s1.json"]
    models = [Filler(), Filler("less", 1)]
    resumed = evaluate(samples, models, store=store)
    assert resumed.images == expected.images
    assert resumed.reused == 2 and [m.calls for m in models] == [2, 2]
    again = [Filler(), Filler("less", 1)]
    assert evaluate(samples, again, store=store).images == expected.images
    assert [m.calls for m in again] == [0, 0]


def test_a_further_model_runs_alone(samples, store):
    """What a sweep needs: the unpatched model's results are there, and only new models run."""
    evaluate(samples, [Filler()], store=store)
    models = [Filler(), Filler("less", 1), Filler("least", 2)]
    found = evaluate(samples, models, store=store)
    assert [m.calls for m in models] == [0, 4, 4]
    assert list(found.images[0]["scores"]) == ["dense", "less", "least"]
    assert list(evaluate(samples, [Filler("less", 1)], store=store).images[0]["scores"]) == ["less"]


def test_what_changed_is_computed_again(samples, store):
    evaluate(samples, [Filler()], store=store)

    def calls(model, **given):
        evaluate(samples, [model], store=store, **given)
        return model.calls

    assert calls(Filler(inset=1)) == 4  # another model of the same name
    assert calls(Filler()) == 4
    assert calls(Filler(), protocol="samhq") == 4
    assert calls(Filler(), protocol="samhq") == 0
    mask = samples[1].mask_files[0]
    mask.write_bytes(samples[0].mask_files[0].read_bytes())
    assert calls(Filler(), protocol="samhq") == 1
    (store.images / "s2.json").write_text('{"name": "s2", "scor')  # a power cut
    assert calls(Filler(), protocol="samhq") == 1


@pytest.mark.parametrize("content", [b"", b"no image", b"\x89PNG\r\n\x1a\n cut off"])
def test_a_corrupt_image(samples, store, content):
    samples[1].photo.write_bytes(content)
    with pytest.raises(BadInputError, match=r"s1\.png.*--skip-bad"):
        evaluate(samples, [Filler()], store=store)
    found = evaluate(samples, [Filler()], store=store, skip_bad=True)
    assert [i["name"] for i in found.images] == ["s0", "s2", "s3"]
    assert [bad["name"] for bad in found.skipped] == ["s1"] and "s1.png" in found.skipped[0]["why"]


def test_nothing_but_corrupt_images(samples):
    for sample in samples:
        sample.photo.write_bytes(b"")
    with pytest.raises(BadInputError, match=r"None of 4 images.*The first, s0: .*s0\.png"):
        evaluate(samples, [Filler()], skip_bad=True)


def test_an_image_whose_masks_cannot_be_drawn(samples):
    """--skip-bad is for the image, wherever it fails; without it a bug keeps its traceback."""

    class Fragile(Filler):
        def logits(self, case):
            if case.truth.shape == samples[1].masks().shape and self.calls == 1:
                self.calls += 1
                raise RuntimeError("height and width must be > 0")
            return super().logits(case)

    with pytest.raises(RuntimeError, match="must be > 0"):
        evaluate(samples, [Fragile()])
    found = evaluate(samples, [Fragile()], skip_bad=True)
    assert [bad["name"] for bad in found.skipped] == ["s1"] and len(found.images) == 3
    assert found.skipped[0]["why"] == "its masks cannot be drawn (RuntimeError: height and width must be > 0)."


def test_a_store_belongs_to_one_evaluation(tmp_path):
    place = tmp_path / "out"
    first = Store(place, {"dataset": "a", "models": {"x": {"rate": 0.5}}})
    first.put("s0", {"name": "s0"})
    first.report({})
    assert Store(place, {"models": {"x": {"rate": 0.5}}, "dataset": "a"}).get("s0") == {"name": "s0"}
    with pytest.raises(UsageError, match=r"other settings \(models\).*--force"):
        Store(place, {"dataset": "a", "models": {"x": {"rate": 0.6}}})
    assert first.get("s0")
    assert Store(place, {"dataset": "b"}, force=True).get("s0") == {}
    assert sorted(p.name for p in place.iterdir()) == ["evaluation.json", "images"]


def test_a_folder_of_someone_else_is_left_alone(tmp_path):
    (tmp_path / "notes.txt").write_text("mine")
    (tmp_path / "images").mkdir()
    (tmp_path / "images" / "holiday.jpg").write_text("mine")
    for place in (tmp_path, tmp_path / "notes.txt"):
        for force in (False, True):
            with pytest.raises(UsageError, match="another --output"):
                Store(place, {}, force=force)
    assert (tmp_path / "images" / "holiday.jpg").read_text() == "mine"
    assert sorted(p.name for p in Path(tmp_path).iterdir()) == ["images", "notes.txt"]
