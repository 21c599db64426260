"""All that this job takes from inside the package: where something moves there, this file alone changes.

Imported inside functions only: the parent process needs none of it.
"""

from structsam_export.artifact import atomic, sha256_of
from structsam_export.benchmark import cpu_name
from structsam_export.benchmark.timing import interleaved, percentiles
from structsam_export.build import MODULES, build_engine, known_targets
from structsam_export.config import ExportConfig
from structsam_export.macs import graph_macs
from structsam_export.models import LoadedModel, load_model, model_spec
from structsam_export.models.geometry import from_encoder
from structsam_export.precision import convert, scan
from structsam_export.rewrite import rewrite
from structsam_export.runtime.images import prepare
from structsam_export.schedule import Schedule, resolve
from structsam_export.trace import trace_encoder
from structsam_export.validate.masks import stage_masks, torch_decoder
from structsam_export.validate.metrics import embedding_errors, mask_ious
from structsam_export.validate.photos import bundled_photos
from structsam_export.validate.runners import engine_runner, run

__all__ = [
    "ExportConfig",
    "LoadedModel",
    "MODULES",
    "Schedule",
    "atomic",
    "build_engine",
    "bundled_photos",
    "convert",
    "cpu_name",
    "embedding_errors",
    "engine_runner",
    "from_encoder",
    "graph_macs",
    "interleaved",
    "known_targets",
    "load_model",
    "mask_ious",
    "model_spec",
    "percentiles",
    "prepare",
    "resolve",
    "rewrite",
    "run",
    "scan",
    "sha256_of",
    "stage_masks",
    "torch_decoder",
    "trace_encoder",
]
