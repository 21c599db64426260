"""What holds for every pack of the registry, and for a toy."""

from __future__ import annotations

import hashlib
import json
from dataclasses import replace
from pathlib import Path

import onnx
import pytest

from structsam_export.errors import ArtifactError, UsageError
from structsam_export.folder import ExportFolder
from structsam_export.packs import MANIFEST, PACKS, make_pack, options_of_packs, pack_class, write_pack


@pytest.fixture
def toy(monkeypatch):
    """One file, one registry line; its class."""
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    monkeypatch.setitem(PACKS, "toy", "toy_pack:Toy")
    return pack_class("toy")


@pytest.mark.parametrize("name", [*PACKS, "toy"])
def test_a_pack_is_a_folder_with_hashes_a_page_and_checked_graphs(name, toy, make_export, any_size, tmp_path):
    folder = make_export("merged")
    made = write_pack(folder, tmp_path / "pack", name)
    listed = json.loads((made.folder / MANIFEST).read_text())
    assert listed == made.manifest
    there = {p.relative_to(made.folder).as_posix(): p for p in made.folder.rglob("*") if p.is_file()}
    assert set(listed["files"]) == set(there) - {MANIFEST}
    for file, record in listed["files"].items():
        content = there[file].read_bytes()
        assert record == {"sha256": hashlib.sha256(content).hexdigest(), "bytes": len(content)}
    assert listed["pack"] == name
    assert listed["source"]["encoder.onnx_sha256"] == ExportFolder.read(folder).manifest.files["encoder.onnx"]["sha256"]
    assert "structsam-export" in there["README.md"].read_text()
    graphs = [path for path in there.values() if path.suffix == ".onnx"]
    assert graphs
    for path in graphs:
        onnx.checker.check_model(str(path))
        if name != "toy":
            check_words(onnx.load(str(path)))


def check_words(model):
    """Every input and output says what it is, and the file says where it comes from."""
    for tensor in (*model.graph.input, *model.graph.output):
        assert len(tensor.doc_string) > 10, tensor.name
    facts = {entry.key: entry.value for entry in model.metadata_props}
    assert facts["method"] == "structsam"
    assert len(facts["decoder.onnx_sha256"]) == 64
    for tensor in model.graph.input:
        if "labels" in tensor.name:
            assert "padding point" in tensor.doc_string


@pytest.mark.parametrize("name", PACKS)
def test_what_a_program_cannot_run_is_refused_with_the_reason(name, make_export, any_size, tmp_path):
    folder = ExportFolder.read(make_export())
    config = folder.config
    cases = {
        "--prompt-aware": replace(config, method="structsam", prompt_aware=True),
    }
    if not pack_class(name).LIMITS.batches:
        cases["--batch 1"] = replace(config, batch=2)
    if "bf16" not in pack_class(name).LIMITS.precisions:
        cases["BF16"] = replace(config, precision="bf16")
    if "ort-cpu" not in pack_class(name).LIMITS.forms:
        cases["--form ort-cpu"] = replace(config, form="ort-cpu")
    for words, changed in cases.items():
        folder.manifest.config = changed
        folder.write()
        with pytest.raises(UsageError, match=words) as refused:
            write_pack(folder.path, tmp_path / "pack", name)
        assert name in str(refused.value)
    folder.manifest.config = config
    folder.manifest.model["preprocessing"] = "efficientsam"
    folder.write()
    with pytest.raises(UsageError, match="this model's are efficientsam"):
        write_pack(folder.path, tmp_path / "pack", name)
    folder.manifest.model["preprocessing"] = "sam"
    folder.record(passed=False)
    with pytest.raises(UsageError, match="parity"):
        write_pack(folder.path, tmp_path / "pack", name)
    assert not (tmp_path / "pack").exists()


@pytest.mark.parametrize("name", [name for name in PACKS if pack_class(name).LIMITS.sizes])
def test_another_size_is_refused(name, make_export, tmp_path):
    with pytest.raises(UsageError, match="this model takes 128 px"):
        write_pack(make_export(), tmp_path / "pack", name)


def test_a_pack_appears_whole_or_not_at_all(toy, make_export, tmp_path):
    folder = make_export()
    with pytest.raises(KeyboardInterrupt):
        write_pack(folder, tmp_path / "pack", "toy", {"colour": "blue"})
    assert [p.name for p in tmp_path.iterdir() if "export" not in p.name] == []
    write_pack(folder, tmp_path / "pack", "toy")
    with pytest.raises(UsageError, match="--force"):
        write_pack(folder, tmp_path / "pack", "toy")
    (tmp_path / "pack" / "stray").touch()
    write_pack(folder, tmp_path / "pack", "toy", force=True)
    assert sorted(p.name for p in (tmp_path / "pack").iterdir()) == ["README.md", MANIFEST, "red.onnx"]
    with pytest.raises(UsageError, match="not a pack"):
        write_pack(folder, folder, "toy", force=True)


def test_a_changed_export_is_refused(toy, make_export, tmp_path):
    folder = make_export()
    with (folder / "decoder.onnx").open("ab") as file:
        file.write(b"\0")
    with pytest.raises(ArtifactError, match="SHA-256"):
        write_pack(folder, tmp_path / "pack", "toy")
    assert not (tmp_path / "pack").exists()


def test_options_are_those_of_the_pack(toy):
    assert make_pack("toy").options == {"colour": "red"}
    assert options_of_packs()["colour"] == toy.OPTIONS["colour"]
    with pytest.raises(UsageError, match="has no --colour"):
        make_pack("meta", {"colour": "red"})
    with pytest.raises(UsageError, match="red, blue"):
        make_pack("toy", {"colour": "green"})
    with pytest.raises(UsageError, match="Did you mean 'anylabeling'"):
        make_pack("anylabelling")


def test_the_command(in_process, make_export, any_size, tmp_path):
    folder = make_export()
    status, out, _ = in_process("pack", "--list")
    assert status == 0
    assert all(name in out for name in PACKS)
    status, out, _ = in_process(
        "pack", folder, tmp_path / "made", "--as", "meta", "--input", "hwc", "--masks", "4", "--json"
    )
    assert status == 0
    assert json.loads(out)["options"] == {"input": "hwc", "masks": "4"}
    status, _, err = in_process("pack", folder, tmp_path / "made2", "--as", "hf", "--input", "hwc")
    assert (status, "no --input" in err) == (2, True)
    status, _, err = in_process("pack", folder)
    assert (status, "--as NAME" in err) == (2, True)
