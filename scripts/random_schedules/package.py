"""All that this job takes from inside the package: where something moves there, this file alone changes."""

from structsam_export.config import ExportConfig
from structsam_export.errors import StructSAMError
from structsam_export.evaluate.command import opened
from structsam_export.evaluate.store import SETTINGS, Store, read
from structsam_export.job import loaded_for
from structsam_export.tune import measure
from structsam_export.tune.costs import Macs
from structsam_export.tune.measure import Measurer
from structsam_export.tune.search import at_random
from structsam_export.tune.space import Choice, Space

__all__ = [
    "SETTINGS",
    "Choice",
    "ExportConfig",
    "Macs",
    "Measurer",
    "Space",
    "Store",
    "StructSAMError",
    "at_random",
    "loaded_for",
    "measure",
    "opened",
    "read",
]
