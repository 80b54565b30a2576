"""The tests of `pytest --pyargs qspec_core.testing --backend NAME`, which a plugin of pytest collects."""

from typing import TYPE_CHECKING

from qspec_core.backend import get_backend
from qspec_core.testing._cases import Case, conformance_cases
from qspec_core.testing._pytest import check_case

if TYPE_CHECKING:
    import pytest

__all__ = ["pytest_generate_tests", "test_conformance"]


def pytest_generate_tests(metafunc: "pytest.Metafunc") -> None:
    """One parameter set for each case of the backend that the command names."""
    import pytest

    name = metafunc.config.getoption("--backend", default=None)
    if name is None:
        raise pytest.UsageError("name a backend: pytest --pyargs qspec_core.testing --backend NAME")
    metafunc.parametrize("case", conformance_cases(get_backend(name)), ids=str)


def test_conformance(case: Case) -> None:
    """Check one case."""
    check_case(case)
