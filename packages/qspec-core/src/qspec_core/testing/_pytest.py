"""Conformance as a function of tests: three lines in a vendor's test folder."""

from collections.abc import Callable

from qspec_core.backend import Backend, get_backend
from qspec_core.testing._cases import Case, conformance_cases
from qspec_core.testing._errors import DeviceMissingError

__all__ = ["check_case", "conformance_test"]


def check_case(case: Case) -> None:
    """Check a case in a test of pytest: it is skipped where the device's runtime is missing."""
    import pytest

    try:
        case.check()
    except DeviceMissingError as missing:
        pytest.skip(missing.problem)


def conformance_test(backend: str | Backend) -> Callable[[Case], None]:
    """The tests that a backend must pass, as one test function of pytest.

        from qspec_core.testing import conformance_test

        test_conformance = conformance_test("toy")

    Args:
        backend: name of an installed backend, or a `Backend`.
    Returns: a test function, with one parameter set for each case.
    Raises: BackendError: the backend is not installed, or its kit does not load.
    """
    import pytest

    cases = conformance_cases(get_backend(backend) if isinstance(backend, str) else backend)

    @pytest.mark.parametrize("case", cases, ids=str)
    def test_conformance(case: Case) -> None:
        check_case(case)

    return test_conformance
