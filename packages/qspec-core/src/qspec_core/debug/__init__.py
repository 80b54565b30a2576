"""Numeric debugging: compare a quantized program with its float model, operator by operator.

`compare` does it in one call. To get the values themselves, log the operators of both programs with
`prepare_for_propagation_comparison` and read the logs with `extract_results_from_loggers`.
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
"""Key in a node's `meta` for notes of users and tools; `torch.export` preserves it."""
FROM_NODE_KEY = "from_node"
"""Key in a node's `meta` for the nodes that it was made from, the latest last."""
