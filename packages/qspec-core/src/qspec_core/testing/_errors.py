"""Errors of the conformance kit, and the names of its checks."""

from enum import StrEnum
from typing import TYPE_CHECKING, Any

from qspec_core._errors import QSpecError, SourceLocation

if TYPE_CHECKING:
    from torch.fx import Node

__all__ = ["CheckName", "ConformanceError", "DeviceMissingError"]


class CheckName(StrEnum):
    """The checks of the kit. A `ConformanceError` names the one that failed."""

    TABLE = "table"  # the table contradicts itself
    REFUSAL = "refusal"  # lowering took an input that it must refuse
    SAMPLE = "sample"  # a row has no sample call, or one that proves nothing
    REACHED = "reached"  # no case can reach the row
    COVERAGE = "coverage"  # another row, or none, quantized the operators under test
    JSON = "coverage as JSON"
    MATCHED_AGAIN = "matched again"  # the row is not found in the converted graph
    CHANNEL_AXIS = "channel axis"
    WEIGHTS = "weights"  # the integers do not represent the weight
    FLOAT_COPY = "float copy"  # the float weight is still there
    RANGES = "ranges"  # a range does not fit the values of calibration
    FLOAT = "float"  # the converted graph is too far from the float model
    RUNS = "runs"  # lowering, or the lowered program, raises an error
    FINITE = "finite"
    SHAPE = "shape"
    CONVERTED = "converted"  # the lowered program computes something else than the converted graph
    GRID = "grid"  # the lowered result is not on the integer grid
    GAIN = "gain"  # the lowered result is a multiple of the expected one
    UNCHANGED = "unchanged"  # a step changed its input
    REPEATS = "repeats"  # a second call gives another result
    KERNELS = "kernels"  # the row runs in float, or nobody can see where it runs
    REPORTED = "reported"  # the device itself says that it did not run the row
    PACKAGE = "package"  # the packaged file does not load or computes something else


class ConformanceError(QSpecError, AssertionError):
    """A backend does not do what its table says.

    Args:
        check: name of the check that failed.
        problem, remedy, where, found, expected: as `qspec_core.QSpecError`.
    """

    def __init__(
        self,
        problem: str,
        *,
        remedy: str,
        check: CheckName,
        where: "SourceLocation | Node | None" = None,
        found: object = None,
        expected: object = None,
    ) -> None:
        super().__init__(problem, remedy=remedy, where=where, found=found, expected=expected)
        self.check = check
        self.args = (f"{self.args[0]}\n  check: {check.value}",)

    def __reduce__(self) -> tuple[Any, ...]:
        rebuild, (kind, problem, fields) = super().__reduce__()
        return rebuild, (kind, problem, {**fields, "check": self.check})


class DeviceMissingError(QSpecError, RuntimeError):
    """All checks up to lowering passed; the module could not be lowered, because the backend's runtime is missing here.

    A test turns it into a skip: `except DeviceMissingError as missing: pytest.skip(missing.problem)`.
    """
