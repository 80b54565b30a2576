"""A converted block with a residual connection, and its lowered program: made once for all tests of lowering."""

import pytest
import torch
from xnnpack_support import IMAGE_INPUT as X
from xnnpack_support import Block, lowered, quantized

from qspec_core import Result
from qspec_xnnpack import XNNPACKProgram


@pytest.fixture(scope="session")
def result() -> Result:
    torch.manual_seed(0)
    return quantized(Block().eval(), X)


@pytest.fixture(scope="session")
def program(result: Result) -> XNNPACKProgram:
    return lowered(result)
