"""Scales of weights for CPUs that sum two products in 16 bits: no pair of products overflows."""

from typing import Any

import hypothesis.extra.numpy as arrays
import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from x86_support import overflows

from qspec_core.observers import MinMaxObserver, PerChannelMinMaxObserver
from qspec_x86._observer import PairSumObserver

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
