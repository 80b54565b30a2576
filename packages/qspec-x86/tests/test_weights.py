"""Weights for CPUs that sum two products in 16 bits: the rule holds for every pair, and costs half a step at most."""

import itertools

import hypothesis.extra.numpy as arrays
import numpy as np
import torch
from hypothesis import given, strategies as st

from qspec_x86._weights import Weight, narrow_weight, pair_sums

WEIGHTS = arrays.arrays(np.int8, st.tuples(st.integers(1, 4), st.integers(1, 6)))


def overflows(row: np.ndarray, input_max: int) -> bool:
    """Whether some two products with inputs of 0..input_max leave 16 bits, by trying the extremes of every pair."""
    pairs = itertools.combinations(row.astype(int), 2)
    sums = [a * x + b * y for a, b in pairs for x in (0, input_max) for y in (0, input_max)]
    return any(not -(2**15) <= total < 2**15 for total in sums)


@given(WEIGHTS, st.sampled_from([255, 200, 127]))
def test_no_pair_overflows_and_the_change_is_small(values: np.ndarray, input_max: int) -> None:
    before = Weight(torch.from_numpy(values), torch.linspace(0.5, 1.0, len(values)))
    after = narrow_weight(before, input_max)
    if after is None:
        assert not any(overflows(row, input_max) for row in values)
        return
    assert not any(overflows(row, input_max) for row in after.integers.numpy())
    change = after.integers.double() * after.scale.double()[:, None] - before.integers.double() * before.scale.double()[:, None]
    # Half a step of the new scale; float32 rounds the factor, the quotient and the new scale.
    assert bool((change.abs() <= after.scale.double()[:, None] * (0.5 + 1e-4)).all())
    kept = torch.tensor([not overflows(row, input_max) for row in values])
    assert torch.equal(after.integers[kept], before.integers[kept])


def test_a_channel_with_one_large_weight_keeps_its_8_bits() -> None:
    integers = torch.tensor([[127, 1, -100, -28], [127, 2, 0, 0]], dtype=torch.int8)
    assert pair_sums(integers).tolist() == [128, 129]
    after = narrow_weight(Weight(integers, torch.ones(2)), 255)
    assert after is not None
    assert after.integers[0].tolist() == [127, 1, -100, -28]
    assert after.scale[0] == 1.0
    assert after.integers[1, 0] < 127
