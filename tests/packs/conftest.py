"""Exports of the tiny model, and packs that take its 128 px."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from small_exports import rewritten
from tiny_model import IMAGE

from structsam_export.folder import ExportFolder
from structsam_export.packs import PACKS, pack_class, write_pack

KINDS = {"plain": {"method": "none"}, "merged": {"method": "structsam", "rate": 0.5}}


@pytest.fixture(scope="session")
def exports():
    """Exports that were made already: options -> folder."""
    return {}


@pytest.fixture
def make_export(tiny_model, exports, tmp_path_factory, tmp_path):
    """(kind, other options) -> the folder of a rewritten export, a copy of its own; it counts as passed."""

    def make(kind="plain", **options):
        given = {**KINDS[kind], **options}
        if str(given) not in exports:
            folder = tmp_path_factory.mktemp("exports") / "export"
            rewritten(folder, model="tiny", checkpoint=str(tiny_model), **given)
            ExportFolder.read(folder).record(passed=True)
            exports[str(given)] = folder
        return Path(shutil.copytree(exports[str(given)], tmp_path / f"export-{kind}", dirs_exist_ok=True))

    return make


@pytest.fixture
def any_size(monkeypatch):
    """Packs take the tiny model's size, too."""
    for name in PACKS:
        cls = pack_class(name)
        if cls.LIMITS.sizes is not None:
            monkeypatch.setattr(cls, "LIMITS", replace(cls.LIMITS, sizes=(IMAGE, 1024)))


@pytest.fixture
def packed(make_export, any_size, tmp_path):
    """(pack, kind, options) -> (export folder, pack folder)."""

    def make(name, kind="plain", **options):
        folder = make_export(kind)
        return folder, write_pack(folder, tmp_path / f"{name}-{kind}", name, options).folder

    return make


@pytest.fixture
def sam(tiny_model):
    """The tiny model in PyTorch."""
    from structsam_export.models import load_model

    return load_model("tiny", tiny_model).sam
