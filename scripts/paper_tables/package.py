"""All that this job takes from inside the package: where something moves there, this file alone changes."""

from structsam_export.cli.show import print_table
from structsam_export.config import ExportConfig
from structsam_export.errors import StructSAMError
from structsam_export.evaluate.command import decimals
from structsam_export.evaluate.predictors import DENSE
from structsam_export.sweep import compare

__all__ = ["DENSE", "ExportConfig", "StructSAMError", "compare", "decimals", "print_table"]
