"""The range search: its errors against points that represent the values, its result against all grids."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qspec_core.observers._range_search import Histogram, RangeSearch, best_ranges

POINTS = 200
"""Points that represent the values of a bin, evenly spread: the error misses 1 / 12 / 200**2 of a squared bin width."""

Scheme = tuple[int, int, int | None]
Spikes = tuple[tuple[float, float], ...]
SCHEMES: tuple[Scheme, ...] = (
    (0, 255, None),
    (-128, 127, 0),
    (0, 15, None),
    (-8, 7, None),
    (0, 3, None),
    (0, 254, 127),
)


def histogram_of(counts: list[int], first: int, scheme: Scheme, spikes: Spikes = ()) -> Histogram:
    """A histogram whose range is all of its bins; spikes are added to the counts."""
    held = torch.tensor(counts)
    for place, number in spikes:
        held[math.floor(place) - first] += int(number)
    low, high = float(first), float(first + len(counts))
    if scheme[2] is not None:
        high = max(-low, high)
        low = -high
    return Histogram(held, first, low, high, *scheme, spikes)


def errors_of(histogram: Histogram, steps: torch.Tensor) -> torch.Tensor:
    """Errors of all grids of one histogram, (steps, starts)."""
    return RangeSearch([histogram]).errors(steps, torch.zeros(len(steps), dtype=torch.int64))


def best_of(counts: list[int], first: int, scheme: Scheme, spikes: Spikes = ()) -> tuple[float, float]:
    return best_ranges([histogram_of(counts, first, scheme, spikes)])[0]


def values_of(counts: list[int], first: int, spikes: Spikes = ()) -> tuple[np.ndarray, np.ndarray]:
    """Points evenly spread in each bin, and the spikes; and the number of values that each represents."""
    places = (np.arange(first, first + len(counts))[:, None] + (np.arange(POINTS) + 0.5) / POINTS).ravel()
    numbers = np.repeat(np.array(counts) / POINTS, POINTS)
    return np.append(places, [place for place, _ in spikes]), np.append(numbers, [number for _, number in spikes])


def starts_of(counts: list[int], first: int, scheme: Scheme) -> list[int]:
    """Steps from the smallest quantized value to 0: 0 has a quantized value, and none is wasted."""
    levels = scheme[1] - scheme[0]
    if scheme[2] is not None:
        return [scheme[0] - scheme[2]]
    if first == 0:
        return [0]
    return [-levels] if first + len(counts) == 0 else list(range(-levels, 1))


def quantized_error(values: tuple[np.ndarray, np.ndarray], step: float, start: int, levels: int) -> float:
    """Sum of squared errors of rounding to the nearest multiple of a step that the grid has."""
    places, numbers = values
    nearest = np.clip(np.rint(places / step), start, start + levels) * step
    return float(np.dot((places - nearest) ** 2, numbers))


COUNTS = st.lists(st.integers(0, 50), min_size=8, max_size=24).filter(any)


@given(COUNTS, st.integers(0, 24), st.floats(0.05, 9.0), st.sampled_from(SCHEMES), st.booleans(), st.data())
@settings(max_examples=50)
def test_errors_are_those_of_evenly_spread_values(
    counts: list[int], below: int, step: float, scheme: Scheme, has_spikes: bool, data: st.DataObject
) -> None:
    first = -min(below, len(counts))
    last = first + len(counts) - 1
    spikes = ((last + 0.75, 5.0), (first + 0.5, 3.0)) if has_spikes else ()
    errors = errors_of(histogram_of(counts, first, scheme, spikes), torch.tensor([1.0, step], dtype=torch.float64))
    starts, levels = starts_of(counts, first, scheme), scheme[1] - scheme[0]
    assert errors.shape == (2, len(starts))
    column = data.draw(st.sampled_from(range(len(starts))))
    values = values_of(counts, first, spikes)
    for row, size in enumerate((1.0, step)):
        expected = quantized_error(values, size, starts[column], levels)
        assert errors[row, column].item() == pytest.approx(expected, rel=1e-4, abs=1e-5 * sum(counts))


def test_errors_of_many_steps_are_those_of_each() -> None:
    histogram = histogram_of([3, 1, 4, 1, 5, 9, 2, 6], -3, (0, 255, None))
    steps = torch.linspace(0.01, 3.0, 700, dtype=torch.float64)
    together = errors_of(histogram, steps)
    assert together.shape == (700, 256)
    for row in (0, 63, 64, 65, 128, 699):
        torch.testing.assert_close(together[row], errors_of(histogram, steps[row : row + 1])[0], rtol=1e-9, atol=1e-9)


def test_only_many_values_on_a_limit_are_a_spike() -> None:
    """Of 1024 values, one on a limit is not a spike, two are."""
    step = torch.tensor([0.7], dtype=torch.float64)
    for number, counts in ((1.0, [1023, 0]), (2.0, [1022, 0])):
        found = errors_of(histogram_of(counts, 0, (0, 3, None), ((1.4, number),)), step).item()
        apart = quantized_error(values_of(counts, 0, ((1.4, number),)), 0.7, 0, 3)
        spread = quantized_error(values_of([counts[0], int(number)], 0), 0.7, 0, 3)
        assert found == pytest.approx(spread if number == 1.0 else apart, rel=1e-4)
        assert abs(spread - apart) > 5e-4 * apart


def test_a_spike_counted_in_the_next_bin_leaves_no_negative_count() -> None:
    histogram = Histogram(torch.tensor([0, 5]), -1, -1e-9, 1.0, 0, 255, None, ((-1e-9, 3.0),))
    assert errors_of(histogram, torch.tensor([1.0], dtype=torch.float64)).min().item() >= 0.0


HISTOGRAMS: dict[str, tuple[list[int], int, Spikes]] = {
    "smooth": ([int(1e6 * math.exp(-(i**2) / 50)) for i in range(-20, 20)], -20, ()),
    "long tail": ([int(1e7 * math.exp(-i / 2)) for i in range(40)], 0, ()),
    "negative": ([int(1e7 * math.exp(i / 2)) for i in range(-40, 0)], -40, ()),
    "lopsided": ([int(1e6 * math.exp(-(i**2) / (20 if i < 0 else 150))) for i in range(-12, 30)], -12, ()),
    "spikes": ([900 if i % 7 == 0 else 0 for i in range(40)], -14, ()),
    "two spikes": ([0] * 3 + [50] + [0] * 30 + [70] + [0] * 4, -11, ()),
    "clamped": ([30] * 36, 0, ((35.5, 800.0),)),
    "clamped on both sides": ([30] * 36, -18, ((17.25, 800.0), (-17.5, 500.0))),
    "outlier": ([10**7, 10**7] + [0] * 61 + [1], -1, ()),
}


@pytest.mark.parametrize("name", HISTOGRAMS)
@pytest.mark.parametrize("scheme", [(0, 255, None), (-128, 127, 0), (0, 15, None), (0, 63, None)], ids=str)
def test_the_range_found_is_the_best_of_all(name: str, scheme: Scheme) -> None:
    """Against 600 steps from that of the whole range down, for every start, with errors of points in NumPy."""
    counts, first, spikes = HISTOGRAMS[name]
    levels, starts = scheme[1] - scheme[0], starts_of(counts, first, scheme)
    low, high = best_of(counts, first, scheme, spikes)
    step = (high - low) / levels
    start = starts[0] if scheme[2] is not None else round(low / step)
    assert start in starts
    assert low == pytest.approx(-high if scheme[2] is not None else start * step)
    largest = max(-first, first + len(counts))
    whole = (len(counts) if scheme[2] is None else 2 * largest) / levels
    assert step <= whole * (1 + 1 / levels) * (1 + 1e-12)
    values = values_of(counts, first, spikes)
    found = quantized_error(values, step, start, levels)
    histogram = histogram_of(counts, first, scheme, spikes)
    steps = whole * (1 + 1 / levels) * 32.0 ** (-np.arange(600) / 600)
    columns = errors_of(histogram, torch.from_numpy(steps)).argmin(1).tolist()
    best = min(
        quantized_error(values, size, starts[column], levels) for size, column in zip(steps, columns, strict=True)
    )
    assert found <= best * 1.01 + sum(counts) / 12 / POINTS**2


def test_an_outlier_is_clipped_if_all_other_values_are_in_one_bin() -> None:
    """The best range balances the distance to the clipped outlier and the rounding of 1e9 values."""
    low, high = best_of([10**9] + [0] * 2046 + [1], 0, (0, 255, None))
    assert low == 0.0
    assert high == pytest.approx(2047.5 / (1 + 1e9 / 12 / 255**2), rel=0.03)


def test_values_on_both_limits_have_a_quantized_value_each() -> None:
    """Both limits are exact if the grid includes them, which costs the other values 1 / 127 more."""
    low, high = best_of([1] * 128, -64, (0, 254, None), ((63.5, 1e6), (-63.5, 1e6)))
    step = (high - low) / 254
    for place in (63.5, -63.5):
        assert abs(place / step - round(place / step)) < 0.02


def test_a_symmetric_range_reaches_as_far_on_both_sides() -> None:
    low, high = best_of([100] * 8, -2, (-128, 127, 0))
    assert low == -high
    assert high == pytest.approx(6.0, rel=0.01)


@given(st.data())
@settings(max_examples=30, deadline=None)
def test_histograms_have_the_same_ranges_together_and_alone(data: st.DataObject) -> None:
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 10**6)))
    histograms = []
    for _ in range(data.draw(st.integers(1, 40))):
        first, scheme = data.draw(st.sampled_from((-64, -17, 0, -200))), data.draw(st.sampled_from(SCHEMES))
        counts = torch.randint(0, data.draw(st.sampled_from((2, 40, 10**6))), (64,), generator=generator)
        counts *= torch.rand(64, generator=generator) < data.draw(st.sampled_from((0.05, 1.0)))
        counts[-1] += 1
        spikes = ((first + 63.25, 300.0),) if data.draw(st.booleans()) else ()
        histograms.append(histogram_of(counts.tolist(), first, scheme, spikes))
    assert best_ranges(histograms) == [best_ranges([histogram])[0] for histogram in histograms]


@pytest.mark.parametrize("name", HISTOGRAMS)
@pytest.mark.parametrize("scheme", [(0, 255, None), (-128, 127, 0)], ids=str)
def test_clipping_is_a_lower_bound_of_the_error(name: str, scheme: Scheme) -> None:
    counts, first, spikes = HISTOGRAMS[name]
    search = RangeSearch([histogram_of(counts, first, scheme, spikes)])
    steps = 45.0 / 255 * torch.linspace(0.02, 1.2, 200, dtype=torch.float64)
    rows = torch.zeros(200, dtype=torch.int64)
    clipping, errors = search.clipping(steps, rows), search.errors(steps, rows).amin(1)
    scale = errors.amax()
    assert (clipping <= errors + 1e-9 * scale).all()
    if errors.numel() and len(starts_of(counts, first, scheme)) == 1:
        # With the smallest steps, nearly all of the error is clipping.
        assert clipping[0] > 0.9 * errors[0]
