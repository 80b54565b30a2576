"""The table: every operator pattern that XNNPACK's delegate executes in integers, one file for each family."""

from dataclasses import replace
from types import MappingProxyType

import torch

from qspec_core.patterns import Flow, Outputs, PatternTable
from qspec_xnnpack._rows import _conv, _elementwise, _embedding, _linear, _pool, _shape
from qspec_xnnpack._rows._checks import taken_dtype
from qspec_xnnpack._rows._float_only import FLOAT_ONLY
from qspec_xnnpack._rows._left_out import LEFT_OUT

__all__ = ["STARTING_TABLE", "TABLE"]

aten = torch.ops.aten

_ROWS = (*_conv.ROWS, *_linear.ROWS, *_embedding.ROWS, *_elementwise.ROWS, *_pool.ROWS, *_shape.ROWS)
TABLE = PatternTable(
    # Convolutions and linear layers come first, so that they take the clamps after them, and the rows of clamps do not.
    rows=tuple(replace(row, checks=(taken_dtype, *row.checks)) for row in _ROWS),
    # The partitioner takes a static convolution or linear layer only if a quantize is its one reader.
    outputs=Outputs.ALWAYS,
    float_only=MappingProxyType(FLOAT_ONLY),
    left_out=MappingProxyType(LEFT_OUT),
)
STARTING_TABLE = replace(
    TABLE,
    rows=tuple(
        replace(row, flow=Flow.STARTS) if row.anchor in (aten.add.Tensor, aten.mul.Tensor) else row
        for row in TABLE.rows
    ),
)
"""The same rows, in which sums and products start integers."""
