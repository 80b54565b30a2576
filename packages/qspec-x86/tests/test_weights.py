"""Weights for CPUs that sum two products in 16 bits: the rule holds for every pair, and costs half a step at most."""

import itertools
from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from qspec_core.observers import MinMaxObserver, PerChannelMinMaxObserver
from qspec_x86._observer import PairSumObserver, pair_sums
from qspec_x86._weights import Weight, narrow_weight

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


FLOAT_WEIGHTS = arrays.arrays(
    np.float32, st.tuples(st.integers(1, 4), st.integers(1, 6)), elements=st.floats(-3, 3, width=32)
)


@given(FLOAT_WEIGHTS)
def test_the_observer_gives_scales_under_which_no_pair_overflows(values: np.ndarray) -> None:
    keywords: dict[str, Any] = {"dtype": torch.int8, "qscheme": torch.per_channel_symmetric}
    keywords |= {"quant_min": -128, "quant_max": 127}
    plain, observer = PerChannelMinMaxObserver(**keywords), PairSumObserver(PerChannelMinMaxObserver, **keywords)
    plain(torch.from_numpy(values))
    assert observer(torch.from_numpy(values)) is not None
    assert observer.has_observed
    scale, zero_point = observer.calculate_qparams()
    assert int(zero_point.abs().max()) == 0
    rows = np.clip(np.rint(values / scale.numpy()[:, None]), -128, 127)
    assert not any(overflows(row, 255) for row in rows)
    before, _ = plain.calculate_qparams()
    # Coarser by a factor of 1 to 2, and 1 wherever nothing could overflow.
    assert bool((scale >= before).all())
    assert bool((scale <= before * 2.02).all())
    fits = [not overflows(row, 255) for row in np.clip(np.rint(values / before.numpy()[:, None]), -128, 127)]
    assert bool((scale[torch.tensor(fits)] <= before[torch.tensor(fits)] * 1.02).all())


def test_the_observer_serves_one_scale_for_all_channels() -> None:
    weight = torch.tensor([[1.0, 1.0], [0.1, -0.1]])
    observer = PairSumObserver(MinMaxObserver, dtype=torch.int8, qscheme=torch.per_tensor_symmetric)
    observer(weight)
    scale, _ = observer.calculate_qparams()
    assert scale.shape == (1,)
    assert torch.round(weight / scale).sum(dim=1).tolist() == [128.0, 0.0]
