"""Fixtures for tests of built wheels.

The nox session sets two variables: QSPEC_WHEELS, the folder of wheels, and QSPEC_TORCH_ONLY, an environment with torch
and its dependencies. An environment made here sees that torch through a .pth file, so that it takes seconds to make. It
installs everything else itself, as `pip install` does in an empty environment.
"""

from collections.abc import Callable
from pathlib import Path

import pytest
from environments import Environment, place


@pytest.fixture(scope="session")
def wheels() -> dict[str, Path]:
    """Wheel of each package, by the name of its distribution."""
    found = sorted(place("QSPEC_WHEELS").glob("qspec_*.whl"))
    return {path.name.split("-")[0].replace("_", "-"): path for path in found}


@pytest.fixture(scope="session")
def make_environment(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Environment]:
    """Function that makes an environment, with torch or with nothing."""

    def make(*, with_torch: bool) -> Environment:
        return Environment.make(tmp_path_factory.mktemp("environment"), with_torch=with_torch)

    return make
