"""A source of weights is one file and one line in `SOURCES`; folders and shards are read strictly."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from small_sams import SMALL, random_sam

from structsam_export.errors import CheckpointError
from structsam_export.models import load_model
from structsam_export.models.checkpoint import read_weights
from structsam_export.models.sources import SOURCES, anchors, source, source_of


def test_every_source_has_its_name_and_an_anchor_of_its_own():
    assert [source(name).NAME for name in SOURCES] == list(SOURCES)
    assert len(set(anchors())) == len(SOURCES)
    for name in SOURCES:
        assert name == source_of([source(name).ANCHOR]).NAME
    assert source_of(["x"]).NAME == "meta"


@pytest.mark.parametrize("prefix", ["", "module.", "my.own."])
def test_a_source_is_one_line(prefix, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(SOURCES, "toy", "toy_source:ToySource")
    state = random_sam().state_dict()
    toy = {k.replace("image_encoder.", "backbone.").replace(".blocks.", ".stage."): v for k, v in state.items()}
    torch.save({"model": {f"{prefix}{k}": v for k, v in toy.items()}}, tmp_path / "w.pth")
    loaded = load_model("auto", tmp_path / "w.pth")
    assert (loaded.source, loaded.geometry) == ("toy", SMALL.encoder)
    assert loaded.architecture.decoder.heads == 4
    for name, weights in loaded.sam.state_dict().items():
        assert torch.equal(weights, state[name])


# --- folders and shards -----------------------------------------------------------------------------------------


@pytest.fixture
def shards(tmp_path):
    """Meta's weights in two files with an index, as a training library might write them."""
    state = random_sam().state_dict()
    names = sorted(state)
    placed = {}
    for i, part in enumerate((names[: len(names) // 2], names[len(names) // 2 :]), 1):
        file = f"model-{i:05}-of-00002.safetensors"
        save_file({k: state[k].clone() for k in part}, tmp_path / file)
        placed |= dict.fromkeys(part, file)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {"total_size": 1}, "weight_map": placed}))
    return index


def refused(path, *words):
    with pytest.raises(CheckpointError) as caught:
        read_weights(path)
    for word in words:
        assert word in str(caught.value)


def rewritten(index, change):
    data = json.loads(index.read_text())
    change(data)
    index.write_text(json.dumps(data))


def test_sharded_weights(shards):
    by_folder, by_index = (load_model("auto", path) for path in (shards.parent, shards))
    assert by_folder.architecture == by_index.architecture == SMALL
    assert by_folder.sha256 == by_index.sha256
    before = by_folder.sha256
    first = shards.parent / "model-00001-of-00002.safetensors"
    first.write_bytes(first.read_bytes()[:-1] + b"\1")
    assert load_model("auto", shards).sha256 != before


@pytest.mark.parametrize("name", ["../w.safetensors", "/etc/passwd", "a\\b", "..", "", "a\0b"])
def test_shards_stay_in_their_folder(name, shards):
    rewritten(shards, lambda data: data["weight_map"].update({"image_encoder.pos_embed": name}))
    refused(shards, "weight_map" if "\0" in name else "which is no plain file name")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda d: d.pop("weight_map"), "lacks 'weight_map'"),
        (lambda d: d.update(weight_map=[1]), "is no index of sharded weights"),
        (lambda d: d.update(weight_map={}), "names 0 files"),
        (lambda d: d.update(weight_map={f"a{i}": f"f{i}" for i in range(300)}), "names 300 files"),
        (lambda d: d["weight_map"].update(extra="model-00001-of-00002.safetensors"), "do not hold: extra"),
        (lambda d: d["weight_map"].pop("image_encoder.pos_embed"), "does not hold what"),
        (lambda d: d["weight_map"].update(extra="model-00003-of-00003.safetensors"), "does not exist"),
    ],
)
def test_an_index_that_does_not_fit_its_files(change, words, shards):
    rewritten(shards, change)
    refused(shards, words)


def test_a_shard_alone(shards):
    refused(shards.parent / "model-00002-of-00002.safetensors", "one of 2 files of sharded weights. Pass the folder")


def test_a_huge_index(shards, monkeypatch):
    monkeypatch.setattr("structsam_export.models.beside.LARGEST_JSON", 100)
    refused(shards, "cannot be read as JSON (more than 100 bytes)")


def test_a_shard_that_is_a_pickle_of_something_else(shards):
    (shards.parent / "model-00002-of-00002.safetensors").write_bytes(b"\x80\x02cos\nsystem\n.")
    refused(shards, "model-00002-of-00002.safetensors")


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ([], "it holds nothing"),
        (["a.pth", "b.pth"], "it holds a.pth, b.pth. Pass the checkpoint file inside it"),
        (["readme.md"], "it holds readme.md"),
        (["adapter_config.json", "adapter_model.safetensors"], "LoRA weights alone. Merge them"),
    ],
)
def test_folders_without_weights(files, words, tmp_path):
    for name in files:
        (tmp_path / name).touch()
    refused(tmp_path, words)


def test_what_lies_beside_weights_may_be_no_pipe(tmp_path):
    from structsam_export.models.beside import read_object

    os.mkfifo(tmp_path / "config.json")
    with pytest.raises(CheckpointError, match="no regular file"):
        read_object(tmp_path / "config.json")
    assert read_object(tmp_path / "none.json") is None
