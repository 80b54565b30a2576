"""The search for a range: its errors against points that stand for the values, what it finds against all grids."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qspec_core.observers._range_search import RangeSearch

POINTS = 200
"""Points that stand for the values in a bin, each for as many: 1 / 12 / 200**2 of a squared bin width is missing."""

Scheme = tuple[int, int, int | None]
Crowds = tuple[tuple[float, float], ...]
SCHEMES: tuple[Scheme, ...] = (
    (0, 255, None),
    (-128, 127, 0),
    (0, 15, None),
    (-8, 7, None),
    (0, 3, None),
    (0, 254, 127),
)


def search_of(counts: list[int], first: int, scheme: Scheme, crowds: Crowds = ()) -> RangeSearch:
    """Over the whole bins; what crowds is counted in the bins as well."""
    held = torch.tensor(counts)
    for place, number in crowds:
        held[math.floor(place) - first] += int(number)
    low, high = float(first), float(first + len(counts))
    if scheme[2] is not None:
        high = max(-low, high)
        low = -high
    return RangeSearch(held, first, low, high, *scheme, crowds)


def values_of(counts: list[int], first: int, crowds: Crowds = ()) -> tuple[np.ndarray, np.ndarray]:
    """Points evenly spread in each bin and the crowds, and how many values each stands for."""
    places = (np.arange(first, first + len(counts))[:, None] + (np.arange(POINTS) + 0.5) / POINTS).ravel()
    numbers = np.repeat(np.array(counts) / POINTS, POINTS)
    return np.append(places, [place for place, _ in crowds]), np.append(numbers, [number for _, number in crowds])


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
    counts: list[int], below: int, step: float, scheme: Scheme, is_crowded: bool, data: st.DataObject
) -> None:
    first = -min(below, len(counts))
    last = first + len(counts) - 1
    crowds = ((last + 0.75, 5.0), (first + 0.5, 3.0)) if is_crowded else ()
    errors = search_of(counts, first, scheme, crowds).errors(torch.tensor([1.0, step], dtype=torch.float64))
    starts, levels = starts_of(counts, first, scheme), scheme[1] - scheme[0]
    assert errors.shape == (2, len(starts))
    column = data.draw(st.sampled_from(range(len(starts))))
    values = values_of(counts, first, crowds)
    for row, size in enumerate((1.0, step)):
        expected = quantized_error(values, size, starts[column], levels)
        assert errors[row, column].item() == pytest.approx(expected, rel=1e-4, abs=1e-5 * sum(counts))


def test_errors_of_many_steps_are_those_of_each() -> None:
    search = search_of([3, 1, 4, 1, 5, 9, 2, 6], -3, (0, 255, None))
    steps = torch.linspace(0.01, 3.0, 700, dtype=torch.float64)
    together = search.errors(steps)
    assert together.shape == (700, 256)
    for row in (0, 63, 64, 65, 128, 699):
        torch.testing.assert_close(together[row], search.errors(steps[row : row + 1])[0], rtol=1e-9, atol=1e-9)


def test_only_a_crowd_is_told_apart_from_its_bin() -> None:
    """Of 1024 values and a few more, one on a limit is none, two are."""
    step = torch.tensor([0.7], dtype=torch.float64)
    for number, counts in ((1.0, [1023, 0]), (2.0, [1022, 0])):
        found = search_of(counts, 0, (0, 3, None), ((1.4, number),)).errors(step).item()
        apart = quantized_error(values_of(counts, 0, ((1.4, number),)), 0.7, 0, 3)
        spread = quantized_error(values_of([counts[0], int(number)], 0), 0.7, 0, 3)
        assert found == pytest.approx(spread if number == 1.0 else apart, rel=1e-4)
        assert abs(spread - apart) > 5e-4 * apart


def test_a_crowd_counted_beside_its_bin_leaves_no_bin_negative() -> None:
    search = RangeSearch(torch.tensor([0, 5]), -1, -1e-9, 1.0, 0, 255, None, ((-1e-9, 3.0),))
    assert search.errors(torch.tensor([1.0], dtype=torch.float64)).min().item() >= 0.0


HISTOGRAMS: dict[str, tuple[list[int], int, Crowds]] = {
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
    """Against 600 steps from that of the whole range down, for every start: errors of points, by NumPy alone."""
    counts, first, crowds = HISTOGRAMS[name]
    levels, starts = scheme[1] - scheme[0], starts_of(counts, first, scheme)
    low, high = search_of(counts, first, scheme, crowds).best()
    step = (high - low) / levels
    start = starts[0] if scheme[2] is not None else round(low / step)
    assert start in starts
    assert low == pytest.approx(-high if scheme[2] is not None else start * step)
    largest = max(-first, first + len(counts))
    whole = (len(counts) if scheme[2] is None else 2 * largest) / levels
    assert step <= whole * (1 + 1 / levels) * (1 + 1e-12)
    values = values_of(counts, first, crowds)
    found = quantized_error(values, step, start, levels)
    search = search_of(counts, first, scheme, crowds)
    steps = whole * (1 + 1 / levels) * 32.0 ** (-np.arange(600) / 600)
    columns = search.errors(torch.from_numpy(steps)).argmin(1).tolist()
    best = min(
        quantized_error(values, size, starts[column], levels) for size, column in zip(steps, columns, strict=True)
    )
    assert found <= best * 1.01 + sum(counts) / 12 / POINTS**2


def test_an_outlier_is_clipped_where_all_else_is_in_one_bin() -> None:
    """Where the distance to the outlier, which is lost, and the rounding of 1e9 values pull alike."""
    low, high = search_of([10**9] + [0] * 2046 + [1], 0, (0, 255, None)).best()
    assert low == 0.0
    assert high == pytest.approx(2047.5 / (1 + 1e9 / 12 / 255**2), rel=0.03)


def test_values_on_both_limits_have_a_quantized_value_each() -> None:
    """As many steps as lie between them: both are exact where the grid has them, which costs the rest 1 / 127 more."""
    low, high = search_of([1] * 128, -64, (0, 254, None), ((63.5, 1e6), (-63.5, 1e6))).best()
    step = (high - low) / 254
    for place in (63.5, -63.5):
        assert abs(place / step - round(place / step)) < 0.02


def test_a_symmetric_range_reaches_as_far_on_both_sides() -> None:
    low, high = search_of([100] * 8, -2, (-128, 127, 0)).best()
    assert low == -high
    assert high == pytest.approx(6.0, rel=0.01)
