"""Weights for CPUs that sum two products in 16 bits: the rule holds for every pair, and costs half a step at most."""

import hypothesis.extra.numpy as arrays
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from x86_support import overflows

from qspec_core.lowering import Weight
from qspec_x86._lowering._weights import narrow_weight
from qspec_x86._observer import pair_sums

WEIGHTS = arrays.arrays(np.int8, st.tuples(st.integers(1, 4), st.integers(1, 6)))


@given(WEIGHTS, st.sampled_from([255, 200, 127]))
def test_no_pair_overflows_and_the_change_is_small(values: np.ndarray, input_max: int) -> None:
    before = Weight(torch.from_numpy(values), torch.linspace(0.5, 1.0, len(values)))
    after = narrow_weight(before, input_max)
    if after is None:
        assert not any(overflows(row, input_max) for row in values)
        return
    assert not any(overflows(row, input_max) for row in after.integers.numpy())
    change = after.integers * after.scale.double()[:, None] - before.integers * before.scale.double()[:, None]
    factor = torch.clamp(pair_sums(before.integers.int()) / (2**15 // input_max - 1), min=1.0)
    # Half a step of the coarser grid each, and the scale is the one that fits best, so that together they are no worse.
    bound = 0.5 * factor * before.scale * (1 + 1e-4)
    assert bool((change.pow(2).mean(dim=1).sqrt() <= bound).all())
    kept = torch.tensor([not overflows(row, input_max) for row in values])
    assert torch.equal(after.integers[kept], before.integers[kept])


def test_a_channel_with_one_large_weight_keeps_its_8_bits() -> None:
    integers = torch.tensor([[127, 1, -100, -28], [127, 2, 0, 0]], dtype=torch.int8)
    assert pair_sums(integers.int()).tolist() == [128, 129]
    after = narrow_weight(Weight(integers, torch.ones(2)), 255)
    assert after is not None
    assert after.integers[0].tolist() == [127, 1, -100, -28]
    assert after.scale[0] == 1.0
    assert after.integers[1, 0] < 127
