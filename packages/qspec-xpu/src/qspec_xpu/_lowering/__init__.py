"""Lowering functions of the rows: each rewrites one match, or returns the reason why it cannot.

`_flow` has the entry functions that lower a whole graph. It is not imported here, because it reads the rows."""

from qspec_xpu._lowering._conv import lower_convolution, lower_transposed
from qspec_xpu._lowering._linear import lower_linear
from qspec_xpu._lowering._weight_only import lower_weight_only

__all__ = ["lower_convolution", "lower_linear", "lower_transposed", "lower_weight_only"]
