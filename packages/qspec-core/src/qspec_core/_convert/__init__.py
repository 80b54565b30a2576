"""Conversion: from a calibrated graph with observers to one with integers."""

from qspec_core._convert._pt2e import convert_pt2e

__all__ = ["convert_pt2e"]
