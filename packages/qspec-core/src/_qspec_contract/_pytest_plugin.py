"""The plugin of pytest for `pytest --pyargs qspec_core.testing --backend NAME`.

pytest loads it in every run, so it imports nothing and adds its option only to a run that names the kit: other test
suites may have an option `--backend` of their own.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pytest

__all__ = ["pytest_collect_file", "pytest_load_initial_conftests"]

_KIT = "qspec_core.testing"
_COLLECTED = ("qspec_core", "testing", "_collected.py")


def pytest_load_initial_conftests(early_config: "pytest.Config", parser: "pytest.Parser", args: Sequence[str]) -> None:
    """Add the option `--backend` to a run of the kit."""
    if _KIT in args:
        group = parser.getgroup("qspec", "conformance of a backend of qspec")
        group.addoption("--backend", action="store", default=None, help="name of an installed backend")


def pytest_collect_file(file_path: Path, parent: "pytest.Collector") -> "pytest.Module | None":
    """Collect the kit's own module, whose name is not that of a test file: it is part of the wheel."""
    if file_path.parts[-3:] != _COLLECTED:
        return None
    import pytest

    return pytest.Module.from_parent(parent, path=file_path)
