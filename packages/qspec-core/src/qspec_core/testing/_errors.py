"""What the conformance kit raises."""

from qspec_core._errors import QSpecError

__all__ = ["ConformanceError", "DeviceMissingError"]


class ConformanceError(QSpecError, AssertionError):
    """A backend does not do what its table says."""


class DeviceMissingError(QSpecError, RuntimeError):
    """Everything up to lowering holds; the lowered form could not be made here, since the backend's runtime is missing.

    A test turns it into a skip: `except DeviceMissingError as missing: pytest.skip(missing.problem)`.
    """
