"""All that this job takes from inside the package: where something moves there, this file alone changes."""

from structsam_export.datasets.pictures import objects_of
from structsam_export.evaluate.protocols import filled_boxes
from structsam_export.metrics import iou
from structsam_export.models.demo import build_demo

__all__ = ["build_demo", "filled_boxes", "iou", "objects_of"]
