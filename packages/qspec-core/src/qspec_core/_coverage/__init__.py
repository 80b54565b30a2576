"""Coverage: the report of every floating-point operator of a model, as plain data that prints and serializes."""

from qspec_core._coverage._record import (
    COVERAGE_KEY,
    coverage,
    decide_folded,
    decide_quantized,
    decide_skipped,
    operators,
    record_coverage,
)
from qspec_core._coverage._report import Coverage, CoverageEntry, CoverageStatus

__all__ = [
    "COVERAGE_KEY",
    "Coverage",
    "CoverageEntry",
    "CoverageStatus",
    "coverage",
    "decide_folded",
    "decide_quantized",
    "decide_skipped",
    "operators",
    "record_coverage",
]
