"""The mutation session on one case of each kernel; `nox -s xpu-mutants` takes all cases."""

import pytest
import xpu_mutants

CASES = (
    "conv2d + sum + relu, static, read by integers",
    "conv_transpose2d, static, read by integers",
    "linear + add + relu, static, rank 3, no bias",
    "linear.weight_only, weight only, bfloat16, 4 bits in groups",
)


@pytest.mark.parametrize("case", CASES)
def test_every_mutant_is_caught(case: str) -> None:
    counts, survivors = xpu_mutants.run(case)
    assert counts.total() > 5
    assert survivors == []
