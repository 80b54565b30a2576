"""Numeric debugging: where a quantized program departs from its float model, operator by operator.

`compare` does it in one call. Who wants the values themselves lets `prepare_for_propagation_comparison` log the
operators of both programs, and reads the logs.
"""

from qspec_core.canonical import NUMERIC_DEBUG_HANDLE_KEY
from qspec_core.debug._compare import Comparison, NodeComparison, compare
from qspec_core.debug._loggers import (
    DebugKey,
    Logged,
    NodeSourceDebugInfo,
    OutputLogger,
    extract_results_from_loggers,
    generate_numeric_debug_handle,
    prepare_for_propagation_comparison,
)
from qspec_core.debug._results import NodeAccuracySummary, QuantizationComparisonResult, compare_results

__all__ = [
    "CUSTOM_KEY",
    "FROM_NODE_KEY",
    "NUMERIC_DEBUG_HANDLE_KEY",
    "Comparison",
    "DebugKey",
    "Logged",
    "NodeAccuracySummary",
    "NodeComparison",
    "NodeSourceDebugInfo",
    "OutputLogger",
    "QuantizationComparisonResult",
    "compare",
    "compare_results",
    "extract_results_from_loggers",
    "generate_numeric_debug_handle",
    "prepare_for_propagation_comparison",
]

CUSTOM_KEY = "custom"
"""Key in a node's `meta` under which users and tools keep notes of their own; `torch.export` preserves it."""
FROM_NODE_KEY = "from_node"
"""Key in a node's `meta` of the nodes that it came from, the latest last."""
