"""Tools for a backend's lowering: find rows in a converted graph, and the integers and parameters of its edges.

Functions that begin with `lower_` are for `Row.lower`: operators that move integers have no arithmetic of their own.
"""

from qspec_core.lowering._geometry import Geometry
from qspec_core.lowering._moves import insert_reshape, lower_cat, lower_max_pool2d, lower_pad, lower_view
from qspec_core.lowering._outputs import Bounds, Output, bounds_of, fused_output, output_of
from qspec_core.lowering._phases import Phases, arrange_phases, insert_phases, phases_of
from qspec_core.lowering._ranges import write_ranges
from qspec_core.lowering._results import finish, output_shape
from qspec_core.lowering._rows import (
    FLOAT_KEY,
    Lowering,
    Quantized,
    lower_rows,
    match_converted,
    on_device,
    quantized_operand,
    quantized_value,
    require_converted,
)
from qspec_core.lowering._weights import Weight, plain_parameters, read_weight

__all__ = [
    "FLOAT_KEY",
    "Bounds",
    "Geometry",
    "Lowering",
    "Output",
    "Phases",
    "Quantized",
    "Weight",
    "arrange_phases",
    "bounds_of",
    "finish",
    "fused_output",
    "insert_phases",
    "insert_reshape",
    "lower_cat",
    "lower_max_pool2d",
    "lower_pad",
    "lower_rows",
    "lower_view",
    "match_converted",
    "on_device",
    "output_of",
    "output_shape",
    "phases_of",
    "plain_parameters",
    "quantized_operand",
    "quantized_value",
    "read_weight",
    "require_converted",
    "write_ranges",
]
