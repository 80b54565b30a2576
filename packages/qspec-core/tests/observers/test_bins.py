"""Bins of a histogram: layout, growth, sums over observers, and the cases in which the whole range is used."""

import math

import numpy as np
import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from qspec_core.observers import HistogramObserver
from qspec_core.observers._histogram import _layout


@given(
    st.floats(-(2.0**20), 0.0, width=32, allow_subnormal=False),
    st.floats(0.0, 2.0**20, width=32, allow_subnormal=False),
    st.integers(2, 70),
)
def test_bins_are_the_narrowest_that_cover_the_range(low: float, high: float, bins: int) -> None:
    assume(low < high)
    exponent, first = _layout(low, high, bins)
    fitting = [e for e in range(-120, 40) if math.floor(high / 2.0**e) - math.floor(low / 2.0**e) < bins]
    assert exponent == min(fitting)
    assert first == math.floor(low / 2.0**exponent)


@pytest.mark.parametrize(
    "batches",
    [
        [[0.5, 1.5], [2.0]],
        [[0.5, 1.99], [2.0, 0.1]],
        [[-1.0, 1.0], [-1.5]],
        [[-1.0, 0.5], [1.0]],
        [[1.0, 3.0], [-4.0]],
        [[-3.0], [-5.0, 7.0]],
        [[1e-30, 3e-30, -2e-30], [1e10, -1e10]],
        [[1e-38], [1.0], [-1.0, 3e38]],
        [[0.0], [0.0, 0.25], [0.25, 16.0]],
    ],
    ids=str,
)
@pytest.mark.parametrize("bins", [2, 3, 8, 64])
def test_growing_bins_hold_what_bins_of_the_whole_range_hold(batches: list[list[float]], bins: int) -> None:
    observer, whole = HistogramObserver(bins=bins), HistogramObserver(bins=bins)
    for batch in batches:
        observer(torch.tensor(batch))
    values = [value for batch in batches for value in batch]
    whole(torch.tensor(values))
    assert all(torch.equal(value, whole.state_dict()[name]) for name, value in observer.state_dict().items())
    assert int(observer.histogram.sum()) == len(values)
    exponent, first = observer.bin_layout.tolist()
    low, high = min(values), max(values)
    assert first <= math.floor(math.ldexp(low, -exponent))
    assert math.floor(math.ldexp(high, -exponent)) < first + bins


def test_a_positive_minimum_and_a_negative_maximum_are_not_counted() -> None:
    observer = HistogramObserver()
    observer(torch.tensor([0.25, 0.25, 0.5, 0.5, 0.5]))
    assert observer.limit_counts.tolist() == [0, 3]
    other = HistogramObserver()
    other(torch.tensor([-0.25, -0.5, -0.5]))
    assert other.limit_counts.tolist() == [2, 0]


@pytest.mark.parametrize("names", [("a", "b"), ("b", "a"), ("a", "none"), ("none", "b"), ("a", "same")])
def test_sum_of_extended_histograms_is_the_histogram_of_all_data(names: tuple[str, str]) -> None:
    data = {
        "a": torch.tensor([-1.0, -1.0, 0.5, 2.0]),
        "b": torch.tensor([-3.0, 0.25, 2.0, 2.0]),
        "same": torch.tensor([-1.0, 2.0, 0.0]),
        "none": torch.empty(0),
    }
    parts = [HistogramObserver(bins=16) for _ in names]
    whole = HistogramObserver(bins=16)
    for name, part in zip(names, parts, strict=True):
        part(data[name])
        whole(data[name])
    low, high = min(part.min_val.item() for part in parts), max(part.max_val.item() for part in parts)
    pairs = [part.cover(low, high) for part in parts]
    assert torch.equal(pairs[0][0] + pairs[1][0], whole.histogram)
    assert torch.equal(pairs[0][1] + pairs[1][1], whole.limit_counts)
    for part in parts:
        assert (part.min_val, part.max_val) == (whole.min_val, whole.max_val)
        assert torch.equal(part.bin_layout, whole.bin_layout)


def test_covering_an_empty_range_changes_nothing() -> None:
    observer = HistogramObserver()
    histogram, _ = observer.cover(math.inf, -math.inf)
    assert int(histogram.sum()) == 0
    assert not observer.has_observed


def test_eight_steps_in_a_bin_use_the_whole_range() -> None:
    """The last of 100,001 values would be clipped by any search."""
    x = torch.cat((torch.rand(100_000) * 0.01, torch.tensor([1.9])))
    for quant_max, is_whole in ((16, True), (15, False)):
        observer = HistogramObserver(bins=2, dtype=torch.uint8, quant_min=0, quant_max=quant_max)
        observer(x)
        assert (observer._best_range() == (0.0, x.max().item())) == is_whole


def test_a_reset_histogram_equals_a_new_one() -> None:
    observer, fresh = HistogramObserver(), HistogramObserver()
    observer(torch.tensor([5.0, -7.0]))
    observer.reset_min_max_vals()
    assert all(torch.equal(value, fresh.state_dict()[name]) for name, value in observer.state_dict().items())
    assert (fresh.bins, fresh.dtype, fresh.qscheme) == (2048, torch.quint8, torch.per_tensor_affine)
    assert fresh.histogram.shape == (2048,)
    assert fresh.limit_counts.shape == (2,)


def test_a_symmetric_range_is_clipped_equally_on_both_sides() -> None:
    """The range equals that of an observer that also saw the mirrored values: these double every error."""
    x = torch.from_numpy(np.abs(np.random.default_rng(7).standard_t(3, size=20_000)))
    for sign in (1.0, -1.0):
        observer = HistogramObserver(dtype=torch.int8, qscheme=torch.per_tensor_symmetric)
        observer(x * sign)
        low, high = observer._best_range()
        assert low == -high
        assert 0.0 < high < x.max().item()
