"""Element-wise rows through ExecuTorch's runtime: in integers, within one step of the converted graph."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from xnnpack_support import Case, Function, Layer, Program, check_complete, check_rows, steps

from qspec_xnnpack import XNNPACKQuantizer, get_symmetric_quantization_config
from qspec_xnnpack._rows import _elementwise


def add_relu(x: Tensor, y: Tensor) -> Tensor:
    return F.relu(x + y)


def add_relu6(x: Tensor, y: Tensor) -> Tensor:
    return F.relu6(x + y)


def mul_relu(x: Tensor, y: Tensor) -> Tensor:
    return F.relu(x * y)


def double(x: Tensor) -> Tensor:
    return x + x


IMAGE = (1, 8, 9, 10)
CASES = {
    "add": Case("add", torch.add, (IMAGE, IMAGE)),
    "add broadcast": Case("add", torch.add, (IMAGE, (1, 8, 1, 1))),
    "add to itself": Case("add", double),
    "add relu": Case("add + relu", add_relu, (IMAGE, IMAGE)),
    "sub": Case("sub", torch.sub, (IMAGE, IMAGE)),
    "mul": Case("mul", torch.mul, (IMAGE, IMAGE)),
    "mul broadcast": Case("mul", torch.mul, (IMAGE, (1, 8, 1, 1))),
    "relu": Case("relu", mul_relu, (IMAGE, IMAGE)),
    "hardtanh": Case("hardtanh", add_relu6, (IMAGE, IMAGE)),
    "clamp below": Case("clamp", partial(torch.clamp, min=-0.5)),
    "clamp above": Case("clamp", partial(torch.clamp_max, max=0.75)),
    "elu": Case("elu", F.elu),
    "elu alpha": Case("elu", partial(F.elu, alpha=0.5)),
}


def test_rows_run_in_integers() -> None:
    check_rows(CASES)


def test_every_row_has_a_case() -> None:
    check_complete(CASES, _elementwise.ROWS)


def add_number(x: Tensor, made: Function) -> Tensor:
    return 0.25 + made(x)


def multiply(x: Tensor, made: Function) -> Tensor:
    return made(x) * -3


BARE: Layer = (nn.Identity, (), {})


def test_numbers_are_operands_where_sums_and_products_start() -> None:
    cases = {"add": Case("add", add_number, ((2, 8, 9),), BARE), "mul": Case("mul", multiply, ((2, 8, 9),), BARE)}
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    program = Program.of(list(cases.values()), quantizer)
    assert program.labels() == [{"add"}, {"mul"}]
    sizes = steps(program.result.converted)
    given = program.check(list(cases), sizes)
    for real, found, step in zip(program.real, given, sizes, strict=True):
        # The number is exact. A step of the product is at least as large as three times one of the input is.
        torch.testing.assert_close(found, real, rtol=0, atol=1.1 * step)
