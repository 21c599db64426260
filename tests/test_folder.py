"""Export folders: names, manifests of this and of earlier versions, and nothing outside the folder."""

from __future__ import annotations

import copy
import json
import os
import stat
from functools import reduce

import pytest
from bench_files import folder_of, outer_product

from structsam_export.backends.base import Engine
from structsam_export.config import ExportConfig
from structsam_export.errors import ArtifactError, OutputError, UsageError
from structsam_export.files import atomic, disk_errors, require_space, sha256_of, staged_files, temporary
from structsam_export.folder import ExportFolder, Results, companion, is_export, new_folder
from structsam_export.geometry import sam_geometry
from structsam_export.pipeline import rewrite_folder

SMALL = outer_product(4, 4)
# A manifest as version 0.1.0 wrote it, engines included.
EARLIER = {
    "model": {"checkpoint": "demo.safetensors", "sha256": "0" * 64, "preprocessing": "sam", "geometry": {}},
    "versions": {"structsam-export": "0.1.0"},
    "files": {"encoder.onnx": {"sha256": "1" * 64, "bytes": 1}},
    "engines": [
        {
            "file": "encoder.tensorrt-rtx-1.7.1-sm86.engine",
            "part": "encoder",
            "backend": "tensorrt-rtx",
            "version": "1.7.1",
            "sm": "sm86",
            "sha256": "2" * 64,
            "bytes": 5,
            "options": {"strongly_typed": True},
            "executed": False,
        }
    ],
    "results": {
        "rewrite": {"encoder": {"linear": 3}},
        "graph": {"encoder": {"nodes_raw": 9, "nodes": 5}},
        "rewrite_skipped": {"encoder": []},
        "passed": True,
    },
}


@pytest.fixture
def mine(tmp_path):
    return ExportFolder.read(folder_of(tmp_path / "mine", SMALL))


def edited(mine, change):
    """The manifest with one change, as text on the disk."""
    data = json.loads((mine.path / "manifest.json").read_text())
    change(data)
    (mine.path / "manifest.json").write_text(json.dumps(data))


def test_a_folder_of_an_earlier_version_is_read(mine):
    edited(mine, lambda data: data.update(EARLIER))
    manifest = ExportFolder.read(mine.path).manifest
    assert manifest.results.passed is True and manifest.results.graph["encoder"]["nodes"] == 5
    assert manifest.engines[0].sm == "sm86" and manifest.engines[0].to_dict() == EARLIER["engines"][0]


def test_what_is_written_is_read_again(mine):
    mine.add_engine(Engine("encoder.onnx", "encoder", "toy", "1", "here", "0" * 64, 3))
    mine.record(passed=False, rewrite={"encoder": {"split": 1}})
    again = ExportFolder.read(mine.path).manifest
    assert again == mine.manifest
    assert again.results == Results(rewrite={"encoder": {"split": 1}}, passed=False)


@pytest.mark.parametrize("name", ["../victim.json", "/etc/hostname", "..", ".", "", "a/b", "a\\b", "a\0b", 5, None])
def test_names_that_lead_out_of_the_folder_are_refused(mine, name, tmp_path):
    """Before anything is read, written or deleted."""
    victim = tmp_path / "victim.json"
    victim.write_text("{}")
    if isinstance(name, str):
        edited(mine, lambda data: data["files"].update({name: {"sha256": sha256_of(victim), "bytes": 2}}))
        with pytest.raises(ArtifactError, match="no plain file name"):
            rewrite_folder(mine.path)
    edited(mine, lambda data: data.update(files={}, engines=[{**EARLIER["engines"][0], "file": name}]))
    with pytest.raises(ArtifactError, match="no plain file name"):
        ExportFolder.read(mine.path)
    assert victim.read_text() == "{}"


@pytest.mark.parametrize("key", ["config", "model", "versions", "files", "engines", "results"])
def test_a_manifest_that_lacks_something_is_refused(mine, key):
    edited(mine, lambda data: data.pop(key))
    with pytest.raises(ArtifactError, match=f"lacks '{key}'"):
        ExportFolder.read(mine.path)


def test_a_manifest_of_a_later_version_is_refused(mine):
    edited(mine, lambda data: data["config"].update(schema=99))
    with pytest.raises(ArtifactError, match="Export again"):
        ExportFolder.read(mine.path)


def test_inputs_are_checked_before_what_was_made_of_them_is_deleted(mine):
    """A changed trace is refused, and engines and reports are still there."""
    (mine.path / "report.json").write_text("{}")
    (mine.path / "decoder.raw.onnx").write_bytes(b"a decoder")
    mine.add("report.json", "decoder.raw.onnx")
    mine.write()
    (mine.path / "decoder.raw.onnx").write_bytes(b"another")
    before = {p.name: p.read_bytes() for p in mine.path.iterdir()}
    with pytest.raises(ArtifactError, match="was changed"):
        rewrite_folder(mine.path)
    assert {p.name: p.read_bytes() for p in mine.path.iterdir()} == before


def test_weights_beside_a_file_belong_to_it(mine):
    assert companion("encoder.onnx") == "encoder.onnx.data"
    assert companion("encoder.openvino-2026.4-f32.xml") == "encoder.openvino-2026.4-f32.bin"
    assert companion("report.json") is None
    (mine.path / "encoder.onnx.data").write_bytes(b"weights")
    mine.add("encoder.onnx")
    assert set(mine.digests("encoder.onnx")) == {"encoder.onnx", "encoder.onnx.data"}
    mine.onnx("encoder")
    (mine.path / "encoder.onnx.data").write_bytes(b"others")
    with pytest.raises(ArtifactError, match=r"encoder\.onnx\.data was changed"):
        mine.onnx("encoder")


def test_engines_without_a_file_are_forgotten(mine):
    (mine.path / "e.xml").write_bytes(b"graph")
    (mine.path / "e.bin").write_bytes(b"weights")
    mine.add_engine(Engine("e.xml", "encoder", "openvino", "1", "f32", "0" * 64, 3))
    assert mine.derived == ["e.xml", "e.bin"]
    mine.forget(mine.derived)
    assert mine.manifest.engines == [] and not (mine.path / "e.xml").exists() and not (mine.path / "e.bin").exists()
    assert (mine.path / "encoder.onnx").exists()


def test_a_new_folder_appears_whole_or_not_at_all(mine, tmp_path):
    target = tmp_path / "out"
    with pytest.raises(RuntimeError), new_folder(target, mine.manifest, force=False) as made:
        (made.path / "half").write_text("")
        raise RuntimeError
    assert [p.name for p in tmp_path.iterdir()] == ["mine"] and not is_export(target)
    with new_folder(target, mine.manifest, force=False) as made:
        made.write()
    assert is_export(target)
    with pytest.raises(UsageError, match="--force"), new_folder(target, mine.manifest, force=False):
        pass


def test_temporary_names_cannot_be_foreseen_or_planted(tmp_path):
    target, victim = tmp_path / "a.json", tmp_path / "victim"
    victim.write_text("mine")
    for name in (".a.json.partial", ".a.json"):
        (tmp_path / name).symlink_to(victim)
    with atomic(target) as partial:
        assert partial.name != ".a.json.partial" and partial.parent == tmp_path
        partial.write_text("new")
    assert (target.read_text(), victim.read_text()) == ("new", "mine")
    assert stat.S_IMODE(target.stat().st_mode) & 0o600 == 0o600
    with temporary(target) as one, temporary(target) as two:
        assert one != two
    assert not one.exists()


def test_a_failed_write_leaves_the_old_file(tmp_path):
    target = tmp_path / "a.txt"
    target.write_text("old")
    with pytest.raises(RuntimeError), atomic(target) as partial:
        partial.write_text("half")
        raise RuntimeError
    assert target.read_text() == "old" and [p.name for p in tmp_path.iterdir()] == ["a.txt"]


def test_links_and_pipes_are_written_through(tmp_path):
    real = tmp_path / "real.txt"
    real.write_text("old")
    (tmp_path / "link.txt").symlink_to(real)
    with atomic(tmp_path / "link.txt") as partial:
        partial.write_text("new")
    assert (tmp_path / "link.txt").is_symlink() and real.read_text() == "new"
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    try:
        with atomic(pipe) as partial:
            partial.write_text("through")
        assert os.read(reader, 100) == b"through" and stat.S_ISFIFO(pipe.stat().st_mode)
    finally:
        os.close(reader)


def test_files_move_up_together(tmp_path):
    with pytest.raises(RuntimeError), staged_files(tmp_path) as partial:
        (partial / "a").write_text("")
        raise RuntimeError
    assert list(tmp_path.iterdir()) == []
    with staged_files(tmp_path) as partial:
        (partial / "a").write_text("")
        (partial / "b").write_text("")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a", "b"]


def test_disk_errors_say_what_to_do(tmp_path, monkeypatch):
    import errno

    for number, said in ((errno.ENOSPC, "No space left"), (errno.EROFS, "Cannot write")):
        with pytest.raises(OutputError, match=said), disk_errors(tmp_path):
            raise OSError(number, "refused")
    with pytest.raises(FileNotFoundError), disk_errors(tmp_path):
        raise FileNotFoundError(errno.ENOENT, "another matter")
    with pytest.raises(OutputError, match="GB free"):
        require_space(tmp_path / "not" / "there", 1 << 60)


# Manifests that somebody else wrote.


def variations():
    """(what, change): every value of a manifest replaced by values of other types, and every key left out."""
    whole = {**EARLIER, "config": ExportConfig(params=(("margin", "0.5"),), images=("a.png",)).to_dict()}
    whole["model"] = {**EARLIER["model"], "geometry": sam_geometry(32, 2, 2, (1,)).to_dict()}
    others = [None, [], {}, "x", "", 7, -1, 1.5, True, float("nan"), float("inf"), 10**30, [[[]]], "a\0b", "\ud800"]

    def paths(value, path=()):
        yield path
        items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, item in items:
            yield from paths(item, (*path, key))

    for path in paths(whole):
        for other in others if path else others[:4]:
            changed = copy.deepcopy(whole)
            if not path:
                changed = other
            else:
                reduce(lambda value, key: value[key], path[:-1], changed)[path[-1]] = other
            yield changed
        if path and isinstance(path[-1], str):
            changed = copy.deepcopy(whole)
            del reduce(lambda value, key: value[key], path[:-1], changed)[path[-1]]
            yield changed


def test_manifests_of_any_shape_are_read_or_refused(tmp_path):
    """A manifest that is read can also be used: its parts are what the program takes them for."""
    path, refused, used = tmp_path / "manifest.json", 0, 0
    for data in variations():
        path.write_text(json.dumps(data))
        try:
            folder = ExportFolder.read(tmp_path)
        except ArtifactError as error:
            refused += 1
            assert str(path) in str(error) and len(str(error)) < 600 + len(str(path))
            continue
        used += 1
        folder.engines_here()
        assert folder.derived is not None and json.dumps(folder.manifest.to_dict())
        assert isinstance(folder.config.batch, int) and folder.config.batch >= 1
    assert refused > 800 and used > 50


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "is damaged"),
        ("null", "not an object"),
        ("[" * 100_000, "is damaged"),
        ('{"a":' * 50_000, "is damaged"),
        ("9" * 5000, "is damaged"),
        ('{"config": ' + "9" * 5000 + "}", "is damaged"),
        ("\ufeff{}", "is damaged"),
        ("\0\1", "is damaged"),
        ("{}", "lacks 'config'"),
    ],
)
def test_what_is_no_manifest(text, said, tmp_path):
    (tmp_path / "manifest.json").write_text(text)
    with pytest.raises(ArtifactError, match=said):
        ExportFolder.read(tmp_path)


@pytest.mark.parametrize("make", ["folder", "loop", "pipe", "none", "long"])
def test_a_manifest_that_cannot_be_read(make, tmp_path):
    path = tmp_path / "manifest.json"
    if make == "folder":
        path.mkdir()
    elif make == "loop":
        path.symlink_to(path)
    elif make == "pipe":
        os.mkfifo(path)
    where = tmp_path / ("a" * 300) if make == "long" else tmp_path
    said = {"folder": "is a folder", "loop": "cannot be read", "pipe": "no regular file", "none": "output folder"}
    with pytest.raises(ArtifactError, match=said.get(make, "cannot be read: File name too long")):
        ExportFolder.read(where)


def test_a_folder_in_place_of_a_listed_file(mine):
    (mine.path / "encoder.onnx").unlink()
    (mine.path / "encoder.onnx").mkdir()
    with pytest.raises(ArtifactError, match="encoder.onnx is a folder"):
        mine.onnx("encoder")


def test_a_folder_without_sizes_of_its_model(mine):
    with pytest.raises(ArtifactError, match="no geometry"):
        _ = mine.geometry


def test_default_names_end_before_file_systems_do():
    long = ExportConfig(layers=",".join(map(str, range(200))))
    name = long.folder_name(0.5)
    assert len(name) < 160 and name.startswith("demo-structsam-")
    assert name != ExportConfig(layers=",".join(map(str, range(201)))).folder_name(0.5)
    assert ExportConfig().folder_name(0.5) == "demo-structsam-r50-auto"
