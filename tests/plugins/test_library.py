"""A library of plugins lies beside its engine and is loaded only as the manifest describes it."""

from __future__ import annotations

import os
import sys
import types
import zipfile
from pathlib import Path

import pytest
from small_exports import rewritten

from structsam_export.backends import backend, plugin_library, tensorrt
from structsam_export.backends.base import Engine
from structsam_export.errors import ArtifactError, UsageError
from structsam_export.files import sha256_of
from structsam_export.folder import ExportFolder

LIBRARY = plugin_library.ELF + b" no code"
PHOTO = sorted((Path(__file__).parents[2] / "structsam_export" / "assets").rglob("*.jpg"))[0]


class Registry:
    """Takes the place of TensorRT's: notes what it is given, and loads nothing."""

    def __init__(self):
        self.accepts, self.seen = True, []

    def __call__(self, trt, library):
        place = Path(os.environ[plugin_library.VARIABLE])
        self.seen.append((trt.__name__, library.read_bytes(), (place / "kernels.txt").read_text()))
        return self.accepts


@pytest.fixture
def registry(monkeypatch):
    """A process that has loaded nothing yet."""
    made = Registry()
    monkeypatch.setattr(plugin_library, "registered", made)
    monkeypatch.setattr(plugin_library, "_loaded", None)
    monkeypatch.setenv(plugin_library.VARIABLE, "")
    return made


@pytest.fixture
def sources(tmp_path):
    """(library, folder of kernels)."""
    library, kernels = tmp_path / "libours.so", tmp_path / "kernels"
    library.write_bytes(LIBRARY)
    kernels.mkdir()
    (kernels / "kernels.txt").write_text("MergePlan merge_plan 0.sm89.cubin 1 1 1 128 0\n")
    (kernels / "0.sm89.cubin").write_bytes(b"cubin")
    return library, kernels


def build(self, onnx, folder, part, target, profile):
    """A build of a moment, in which plugins compute two layers of the encoder."""
    (folder / f"{part}.engine").write_bytes(onnx.read_bytes())
    options = {"plugin_layers": 2} if part == "encoder" else {}
    return Engine(f"{part}.engine", part, self.NAME, "1.7", target, sha256_of(folder / f"{part}.engine"), 1, options)


@pytest.mark.skipif(not backend("tensorrt-rtx").installed(), reason="TensorRT-RTX is not installed")
def test_engines_load_the_library_that_the_manifest_lists_and_no_other(
    registry, sources, shared_model, tmp_path, in_process, monkeypatch
):
    """Built, then predicted with: the registry gets the recorded library; once it was changed, nothing is loaded."""
    folder = rewritten(tmp_path / "out", model="shared", checkpoint=str(shared_model), rate=0.5, layers="0,1")
    given = ["--plugins", "token_merge", "--plugin-library", sources[0], "--plugin-kernels", sources[1]]
    monkeypatch.setattr(tensorrt.TensorRT, "build", build)
    code, _, err = in_process("build", folder, "--backend", "tensorrt-rtx", "--target", "sm89", *given)
    assert code == 0, err
    kernels = (sources[1] / "kernels.txt").read_text()
    assert registry.seen == [("tensorrt_rtx", LIBRARY, kernels)]
    made = ExportFolder.read(folder)
    engines = {engine.part: engine for engine in made.manifest.engines}
    packed = folder / f"{engines['encoder'].file}.plugins.zip"
    assert engines["encoder"].options["plugin_library"] == "libours.so"
    assert made.digests(engines["encoder"].file).keys() == {engines["encoder"].file, packed.name}
    with zipfile.ZipFile(packed) as opened:
        assert sorted(opened.namelist()) == ["0.sm89.cubin", "kernels.txt", "library.so"]

    def predicts():
        """Exit code and message of a prediction with the engines, and what the registry was given."""
        registry.seen.clear()
        registry.accepts = False  # there is no GPU: this far, and no further
        monkeypatch.setattr(plugin_library, "_loaded", None)
        code, _, err = in_process("predict", folder, PHOTO, "--box", "1,1,50,50", "--output", tmp_path / "p")
        return code, err, len(registry.seen)

    monkeypatch.setattr(tensorrt.TensorRT, "fits", lambda self, engine: engine.backend == self.NAME)
    code, err, asked = predicts()
    assert (code, asked) == (5, 1) and "refuses the plugin library" in err
    before = packed.read_bytes()
    packed.write_bytes(before + b"x")
    code, err, asked = predicts()
    assert (code, asked) == (5, 0) and "SHA-256 differs" in err
    packed.unlink()
    code, err, asked = predicts()
    assert (code, asked) == (5, 0) and "missing" in err
    # One that nobody built.
    stray = folder / f"{engines['decoder'].file}.plugins.zip"
    packed.write_bytes(before)
    stray.write_bytes(before)
    with pytest.raises(ArtifactError, match=f"lists no {stray.name}"):
        made.verified(engines["decoder"].file)


def library_module():
    return types.SimpleNamespace(__name__="tensorrt")


def test_a_process_loads_one_library_once(registry, sources, tmp_path):
    packed, other = tmp_path / "a.zip", tmp_path / "b.zip"
    plugin_library.archive(*sources, packed)
    sources[0].write_bytes(LIBRARY + b", too")
    plugin_library.archive(*sources, other)
    for _ in range(2):
        plugin_library.load(library_module(), packed)
    assert [library for _, library, _ in registry.seen] == [LIBRARY]
    with pytest.raises(UsageError, match="one plugin library only"):
        plugin_library.load(library_module(), other)
    plugin_library.load_beside(library_module(), tmp_path / "an.engine")  # needs none
    assert len(registry.seen) == 1


def test_what_is_no_library_is_refused(registry, sources, tmp_path):
    library, kernels = sources
    for wrong in (tmp_path / "nothing.so", tmp_path):
        with pytest.raises(ArtifactError, match="no shared library"):
            plugin_library.archive(wrong, None, tmp_path / "a.zip")
    library.write_text("#!/bin/sh")
    with pytest.raises(ArtifactError, match="no shared library"):
        plugin_library.archive(library, None, tmp_path / "a.zip")
    library.write_bytes(LIBRARY)
    (kernels / "kernels.txt").unlink()
    with pytest.raises(ArtifactError, match=r"has no kernels\.txt"):
        plugin_library.archive(library, kernels, tmp_path / "a.zip")


@pytest.mark.parametrize(
    ("names", "message"),
    [(["library.so", "../evil"], "holds paths"), (["kernels.txt"], "has no library"), (None, "no archive")],
)
def test_archives_of_others_are_refused(registry, tmp_path, names, message):
    packed = tmp_path / "a.zip"
    packed.write_bytes(b"no archive")
    if names is not None:
        with zipfile.ZipFile(packed, "w") as made:
            for name in names:
                made.writestr(name, b"x")
    with pytest.raises(ArtifactError, match=message):
        plugin_library.load(library_module(), packed)
    assert registry.seen == []


def test_tensorrts_own_registry_is_asked(tmp_path, monkeypatch):
    """The seam itself: `load_library` of the registry, None where it fails."""
    asked = []

    def module(handle):
        registry = types.SimpleNamespace(load_library=lambda path: asked.append(path) or handle)
        return types.SimpleNamespace(get_plugin_registry=lambda: registry)

    assert plugin_library.registered(module(object()), tmp_path / "library.so") is True
    assert plugin_library.registered(module(None), tmp_path / "library.so") is False
    assert asked == [str(tmp_path / "library.so")] * 2


def test_packs_for_triton_refuse_engines_with_a_library(tmp_path, monkeypatch):
    """Triton is given its plugins when it starts, not by a model's folder."""
    from structsam_export.packs import triton

    engine = tmp_path / "encoder.engine"
    engine.write_bytes(b"engine")
    folder = types.SimpleNamespace(verified=lambda name: tmp_path / name)
    monkeypatch.setattr(triton, "engine", lambda source, backend, part: types.SimpleNamespace(file=engine.name))
    source, place = types.SimpleNamespace(folder=folder), tmp_path / "model"
    place.mkdir()
    triton.write_graph(source, "tensorrt", "encoder", None, place)
    assert [path.read_bytes() for path in place.iterdir()] == [b"engine"]
    (tmp_path / "encoder.engine.plugins.zip").write_bytes(b"library")
    with pytest.raises(UsageError, match="cannot carry"):
        triton.write_graph(source, "tensorrt", "encoder", None, place)


WRONG = {
    "belongs to an engine": ["--backend", "none", "--plugin-library", "x.so"],
    "belong to a --plugin-library": ["--backend", "tensorrt-rtx", "--plugin-kernels", "."],
    "for TensorRT and TensorRT-RTX": ["--backend", "openvino", "--plugin-library", sys.executable],
}


def test_libraries_where_they_have_no_use(shared_model, tmp_path, in_process):
    folder = rewritten(tmp_path / "out", model="shared", checkpoint=str(shared_model), rate=0.5, layers="0,1")
    for message, arguments in WRONG.items():
        if arguments[1] == "none" or backend(arguments[1]).installed():
            code, _, err = in_process("build", folder, *arguments)
            assert code == 2 and message in err, err
    assert ExportFolder.read(folder).manifest.engines == []
