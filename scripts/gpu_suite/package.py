"""All that this job takes from inside the package: where something moves there, this file alone changes.

Imported inside functions only: the parent process needs none of it.
"""

from structsam_export.backends import backend as backend_of
from structsam_export.backends import plugin_library
from structsam_export.backends.base import RunOptions
from structsam_export.backends.onnxruntime import PROVIDERS
from structsam_export.backends.tensorrt_rtx import library as rtx_library
from structsam_export.config import ExportConfig
from structsam_export.eager import decoder_of
from structsam_export.environment import cpu_name
from structsam_export.files import atomic, sha256_of
from structsam_export.fused import PLUGINS
from structsam_export.fused import part as plugin_part
from structsam_export.hosts import geometry_of
from structsam_export.macs import graph_macs
from structsam_export.metrics import embedding_errors, mask_ious
from structsam_export.models import LoadedModel, load_model, model_spec
from structsam_export.precision import calibrate, convert
from structsam_export.rewrite import apply_plugins, rewrite
from structsam_export.runtime.photos import bundled_photos
from structsam_export.schedule import Schedule, resolve
from structsam_export.timing import interleaved, percentiles
from structsam_export.trace import trace_encoder
from structsam_export.validate.stages import Inputs, run

__all__ = [
    "PLUGINS",
    "PROVIDERS",
    "ExportConfig",
    "Inputs",
    "LoadedModel",
    "RunOptions",
    "Schedule",
    "apply_plugins",
    "atomic",
    "backend_of",
    "bundled_photos",
    "calibrate",
    "convert",
    "cpu_name",
    "decoder_of",
    "embedding_errors",
    "geometry_of",
    "graph_macs",
    "interleaved",
    "load_model",
    "mask_ious",
    "model_spec",
    "percentiles",
    "plugin_library",
    "plugin_part",
    "resolve",
    "rewrite",
    "rtx_library",
    "run",
    "sha256_of",
    "trace_encoder",
]
