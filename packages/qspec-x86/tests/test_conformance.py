"""The conformance kit on the x86 table, in the eager form, and in the compiled one where QSPEC_SLOW is set: that takes
a C++ compiler for each case."""

import os
import warnings
from typing import Any

import pytest
import torch
from torch import nn
from torch.fx import GraphModule

from qspec_core.testing import Case, conformance_cases, conformance_test
from qspec_x86 import BACKEND, lower_eager

test_conformance = conformance_test(BACKEND)


def compiled(converted: GraphModule, example_inputs: tuple[Any, ...], target: str) -> nn.Module:
    """Compiled for this very case at its first call, and called: some cases look at the module alone."""
    torch._dynamo.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inductor's own, which differ between versions of torch
        lowered = torch.compile(lower_eager(converted, target), dynamic=False)
        lowered(*example_inputs)
    assert isinstance(lowered, nn.Module)
    return lowered


@pytest.mark.skipif("QSPEC_SLOW" not in os.environ, reason="compiles each case for itself: set QSPEC_SLOW")
@pytest.mark.parametrize("case", conformance_cases(BACKEND, lower=compiled), ids=str)
def test_conformance_compiled(case: Case) -> None:
    case.check()
