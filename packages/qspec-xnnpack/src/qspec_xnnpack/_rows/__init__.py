"""The table: every operator pattern that XNNPACK's delegate executes in integers, one file a family."""

from types import MappingProxyType

from qspec_core.patterns import Outputs, PatternTable
from qspec_xnnpack._rows import _conv, _elementwise, _linear, _pool, _shape
from qspec_xnnpack._rows._float_only import FLOAT_ONLY

__all__ = ["TABLE"]

TABLE = PatternTable(
    # Convolutions and linear layers first, so that they, and no lone clamp, take the clamp behind them.
    rows=(*_conv.ROWS, *_linear.ROWS, *_elementwise.ROWS, *_pool.ROWS, *_shape.ROWS),
    # The partitioner takes a static convolution or linear layer only where a quantize is its one reader.
    outputs=Outputs.ALWAYS,
    float_only=MappingProxyType(FLOAT_ONLY),
)
