"""All that this job takes from inside the package: where something moves there, this file alone changes."""

from structsam_export.config import ExportConfig
from structsam_export.datasets import open_dataset
from structsam_export.eager import decoder_of
from structsam_export.evaluate.protocols import sam_case
from structsam_export.macs import paper_macs
from structsam_export.metrics import iou
from structsam_export.models import load_model
from structsam_export.report.pictures import COLOURS
from structsam_export.schedule import resolve

__all__ = [
    "COLOURS",
    "ExportConfig",
    "decoder_of",
    "iou",
    "load_model",
    "open_dataset",
    "paper_macs",
    "resolve",
    "sam_case",
]
