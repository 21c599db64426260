"""Exports with fused operators: matched where they must be, and the same masks from every runtime that runs here."""

from __future__ import annotations

import onnx
import pytest
from small_exports import rewritten
from tiny_model import save_shared

from structsam_export.config import ExportConfig
from structsam_export.errors import UsageError
from structsam_export.folder import ExportFolder
from structsam_export.fused import DOMAIN, PLUGINS
from structsam_export.pipeline import precision_stage, validate_folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save_shared(tmp_path_factory.mktemp("shared") / "shared.pth")
