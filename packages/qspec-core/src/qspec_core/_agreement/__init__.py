"""Agreement of a lowered program with the converted graph that it was made from."""

from qspec_core._agreement._bisect import first_divergence
from qspec_core._agreement._calls import Call, calls_of
from qspec_core._agreement._check import LoweringCheck, check_lowered
from qspec_core._agreement._compare import Deviation, deviations

__all__ = ["Call", "Deviation", "LoweringCheck", "calls_of", "check_lowered", "deviations", "first_divergence"]
