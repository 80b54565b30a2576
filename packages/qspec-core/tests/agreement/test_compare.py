"""The bound of a lowered program's error where sums cancel, in each floating-point type."""

import pytest
import torch

from qspec_core._agreement._calls import Call
from qspec_core._agreement._compare import deviations


@pytest.mark.parametrize(
    ("dtype", "unit"), [(torch.float32, 2.0**-23), (torch.float16, 2.0**-10), (torch.bfloat16, 2.0**-7)], ids=str
)
def test_one_unit_of_1_is_allowed_where_sums_cancel_and_20_are_not(dtype: torch.dtype, unit: float) -> None:
    expected = torch.tensor([[-0.03], [0.002]], dtype=dtype) * unit
    call = Call(label="the example inputs", inputs=(), expected=(expected,), moved=(expected,))
    near, far = expected + unit, expected + 20 * unit
    (right,), (wrong,) = deviations(call, [near]), deviations(call, [far])
    assert right.ratio <= 1
    assert wrong.ratio > 1
