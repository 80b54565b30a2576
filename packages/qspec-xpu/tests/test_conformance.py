"""The conformance kit on the XPU table: each lowered graph is traced on a fake device and runs on the reference."""

from collections.abc import Mapping
from typing import Any

import pytest
import torch
from torch import nn
from xpu_reference import lower_to_reference
from xpu_samples import SAMPLES

from qspec_core.testing import Case, DeviceMissingError, conformance_cases
from qspec_xpu import BACKEND, LOWERING_KEY


def ran(lowered: nn.Module) -> Mapping[str, str]:
    meta: Any = lowered.meta
    report: Mapping[str, str] = meta[LOWERING_KEY].lowered
    return report


@pytest.mark.parametrize(
    "case", conformance_cases(BACKEND, samples=SAMPLES, lower=lower_to_reference, ran=ran), ids=str
)
def test_conformance(case: Case) -> None:
    case.check()


@pytest.mark.skipif(torch.xpu.is_available(), reason="there is a device: the session xpu-device runs the cases on it")
def test_without_a_device_the_backends_own_lowering_says_so() -> None:
    case = next(c for c in conformance_cases(BACKEND) if str(c).startswith("conv2d"))
    with pytest.raises(DeviceMissingError, match="needs an Intel GPU"):
        case.check()
