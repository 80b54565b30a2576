"""The conformance kit on the x86 table, lowered to the eager form: the compiled one takes a C++ compiler a case."""

from collections.abc import Mapping
from typing import Any

import pytest
from torch import nn
from torch.fx import GraphModule

from qspec_core.testing import Case, conformance_cases
from qspec_x86 import BACKEND, LOWERING_KEY, lower_eager, saturates

# A CPU that cuts sums to 16 bits cannot run what was made for one that does not.
TARGETS = tuple(target for target in BACKEND.targets if target != "vnni" or not saturates())


def eager(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
    return lower_eager(converted, target)


def ran(lowered: nn.Module) -> Mapping[str, str]:
    assert isinstance(lowered, GraphModule)
    report: Mapping[str, str] = lowered.meta[LOWERING_KEY].lowered
    return report


@pytest.mark.parametrize("case", conformance_cases(BACKEND, targets=TARGETS, lower=eager, ran=ran), ids=str)
def test_conformance(case: Case) -> None:
    case.check()
