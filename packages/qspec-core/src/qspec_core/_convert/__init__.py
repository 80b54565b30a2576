"""Conversion: from a calibrated graph with observers to one with integers."""

from qspec_core._convert._pt2e import convert_pt2e
from qspec_core._convert._wide_ranges import WideRangeWarning

__all__ = ["WideRangeWarning", "convert_pt2e"]
