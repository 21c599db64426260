"""All that this job takes from inside the package: where something moves there, this file alone changes."""

from structsam_export.catalogue import catalogue, markdown
from structsam_export.config import ExportConfig
from structsam_export.methods import METHODS, PROMPT_AWARE, method_class
from structsam_export.models import LoadedModel, load_model
from structsam_export.patch import prompted, recording
from structsam_export.report.pictures import token_map, with_prompts
from structsam_export.runtime.images import Prepared, prepare
from structsam_export.runtime.photos import Photo, bundled_photos
from structsam_export.runtime.prompts import prompt_box
from structsam_export.schedule import Schedule, resolve

__all__ = [
    "METHODS",
    "PROMPT_AWARE",
    "ExportConfig",
    "LoadedModel",
    "Photo",
    "Prepared",
    "Schedule",
    "bundled_photos",
    "catalogue",
    "load_model",
    "markdown",
    "method_class",
    "prepare",
    "prompt_box",
    "prompted",
    "recording",
    "resolve",
    "token_map",
    "with_prompts",
]
