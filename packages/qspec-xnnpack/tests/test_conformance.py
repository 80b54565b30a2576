"""The conformance kit on the XNNPACK table, lowered to programs that ExecuTorch's runtime executes."""

from collections.abc import Mapping

import pytest
import torch
from torch import nn

from qspec_core.testing import Case, DeviceMissingError, Sample, Samples, conformance_cases
from qspec_xnnpack import BACKEND, XNNPACKProgram

aten = torch.ops.aten


def ran(lowered: nn.Module) -> Mapping[str, str]:
    assert isinstance(lowered, XNNPACKProgram)
    return lowered.delegation.rows


# One image: dynamic convolutions take one. Depthwise ones, which are static only, are in rows/test_conv.py.
IMAGE, SIZES = (1, 4, 6, 6), {"weight": (4, 4, 3, 3), "bias": (4,)}
GROUPED = Sample({"input": IMAGE, "weight": (8, 2, 3, 3)}, {"stride": [2, 2], "groups": 2}, name="grouped, strided")
SAMPLES: Samples = {
    aten.conv2d.default: (Sample({"input": IMAGE, **SIZES}, {"padding": [1, 1]}), GROUPED),
    aten.conv_transpose2d.input: Sample({"input": IMAGE, **SIZES}, {"stride": [2, 2]}),
    # With both bounds a clamp is a hardtanh in canonical form.
    aten.clamp.default: Sample({"self": (2, 4, 6, 6)}, {"min": -0.5}),
    # Of the last dimension only, so that convolutions of every rank absorb it.
    aten.pad.default: Sample({"self": (2, 4, 6, 6)}, {"pad": [1, 2]}),
}


@pytest.mark.parametrize("case", conformance_cases(BACKEND, samples=SAMPLES, ran=ran), ids=str)
def test_conformance(case: Case) -> None:
    try:
        case.check()
    except DeviceMissingError as missing:
        pytest.skip(missing.problem)
