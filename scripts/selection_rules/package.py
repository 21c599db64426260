"""All that this job takes from inside the package: where something moves there, this file alone changes."""

from structsam_export.config import ExportConfig
from structsam_export.evaluate.command import opened
from structsam_export.evaluate.store import Store
from structsam_export.job import loaded_for
from structsam_export.methods import METHODS
from structsam_export.methods.cells import group_by_cell, rows_by_cell
from structsam_export.methods.energy import gradient_energy
from structsam_export.methods.structsam import StructSAM
from structsam_export.tokens import Tokens
from structsam_export.tune import measure
from structsam_export.tune.measure import Measurer

__all__ = [
    "METHODS",
    "ExportConfig",
    "Measurer",
    "Store",
    "StructSAM",
    "Tokens",
    "gradient_energy",
    "group_by_cell",
    "loaded_for",
    "measure",
    "opened",
    "rows_by_cell",
]
