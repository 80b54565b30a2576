"""The XPU table: every operator pattern that runs in integers on an Intel GPU, and the operators that stay in float."""

from qspec_core.patterns import Outputs, PatternTable
from qspec_xpu._rows import _conv, _linear, _pool, _shape
from qspec_xpu._rows._float_only import FLOAT_ONLY
from qspec_xpu._rows._left_out import LEFT_OUT

__all__ = ["TABLE"]

TABLE = PatternTable(
    rows=(*_conv.ROWS, *_linear.ROWS, *_pool.ROWS, *_shape.ROWS),
    outputs=Outputs.DEMAND,
    float_only=FLOAT_ONLY,
    left_out=LEFT_OUT,
)
"""Rows in the order in which they claim operators."""
