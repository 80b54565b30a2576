"""Errors of the conformance kit."""

from qspec_core._errors import QSpecError

__all__ = ["ConformanceError", "DeviceMissingError"]


class ConformanceError(QSpecError, AssertionError):
    """A backend does not do what its table says."""


class DeviceMissingError(QSpecError, RuntimeError):
    """All checks up to lowering passed; the module could not be lowered, because the backend's runtime is missing here.

    A test turns it into a skip: `except DeviceMissingError as missing: pytest.skip(missing.problem)`.
    """
