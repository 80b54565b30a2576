"""The conformance kit on the XNNPACK table, lowered to programs that ExecuTorch's runtime executes."""

from collections.abc import Mapping

import pytest
from torch import nn

from qspec_core.testing import Case, DeviceMissingError, conformance_cases
from qspec_xnnpack import BACKEND, XNNPACKProgram


def ran(lowered: nn.Module) -> Mapping[str, str]:
    assert isinstance(lowered, XNNPACKProgram)
    return lowered.delegation.rows


@pytest.mark.parametrize("case", conformance_cases(BACKEND, ran=ran), ids=str)
def test_conformance(case: Case) -> None:
    try:
        case.check()
    except DeviceMissingError as missing:
        pytest.skip(missing.problem)
