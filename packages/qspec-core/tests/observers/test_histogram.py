"""Histograms against NumPy counts; the range search against an exhaustive search by simulated quantization."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from qspec_core import SpecError
from qspec_core.observers import HistogramObserver, MinMaxObserver

FLOATS = st.floats(-(2.0**100), 2.0**100, width=32)
BATCHES = st.lists(st.lists(FLOATS, max_size=8), min_size=1, max_size=5)


def counts_of(observer: HistogramObserver) -> dict[int, int]:
    """Count by bin number, for bins that are not empty."""
    first = int(observer.bin_layout[1])
    return {first + i: int(n) for i, n in enumerate(observer.histogram.tolist()) if n}


@given(BATCHES)
def test_every_value_is_in_its_bin(batches: list[list[float]]) -> None:
    values = [value for batch in batches for value in batch]
    observer = HistogramObserver(bins=64)
    for batch in batches:
        observer(torch.tensor(batch, dtype=torch.float32))
    width = math.ldexp(1.0, int(observer.bin_layout[0]))
    expected: dict[int, int] = {}
    for value in values:
        # Values far smaller than the narrowest bin may be counted on the other side of 0.
        number = 0 if abs(value) < 2.0**-100 and value < 0 else math.floor(value / width)
        expected[number] = expected.get(number, 0) + 1
    found = counts_of(observer)
    if all(value >= 0 or abs(value) >= max(2.0**-100, width * 2.0**-140) for value in values):
        assert found == expected
    assert sum(found.values()) == len(values)


@given(st.lists(st.lists(st.floats(-1e4, 1e4, width=32, allow_subnormal=False), max_size=8), min_size=2, max_size=4))
@settings(max_examples=50)
def test_order_and_division_of_batches_do_not_matter(batches: list[list[float]]) -> None:
    states = []
    merged = [[value for batch in batches for value in batch]]
    for order in [*itertools.permutations(batches), merged]:
        observer = HistogramObserver(bins=32)
        for batch in order:
            observer(torch.tensor(batch, dtype=torch.float32))
        states.append(observer.state_dict())
    for state in states[1:]:
        assert all(torch.equal(value, state[name]) for name, value in states[0].items())


@pytest.mark.parametrize("size", [1, 1000, (1 << 20) + 3])
@pytest.mark.parametrize("shift", [0.0, 2.5])
def test_counts_equal_numpy(size: int, shift: float) -> None:
    x = torch.randn(size, generator=torch.Generator().manual_seed(size)) + shift
    observer = HistogramObserver()
    observer(x.reshape(1, -1).t())
    exponent, first = observer.bin_layout.tolist()
    edges = np.ldexp(np.arange(first, first + 2049, dtype=np.float64), exponent)
    expected = np.histogram(x.numpy().astype(np.float64), bins=edges)[0]
    np.testing.assert_array_equal(observer.histogram.numpy(), expected)
    used = (max(x.max().item(), 0) - min(x.min().item(), 0)) / math.ldexp(1.0, exponent)
    assert 1023 <= used <= 2048  # the narrowest bins that cover the range


def sample(name: str) -> np.ndarray:
    random = np.random.default_rng(7)
    n = 20000
    values = {
        "normal": random.normal(size=n),
        "relu": np.maximum(random.normal(size=n), 0),
        "negative": -np.abs(random.normal(size=n)),
        "laplace": random.laplace(size=n),
        "heavy": random.standard_t(3, size=n),
        "lognormal": np.exp(random.normal(size=n)),
        "uniform": random.uniform(-1, 2, size=n),
        "outlier": np.append(random.normal(size=n), 60.0),
        "clipped": np.clip(random.normal(size=n), -1, 1),
        "relu6": np.clip(random.normal(size=n) * 4, 0, 6),
        "levels": random.integers(-7, 9, size=n) * 0.37,
        "silu": (lambda x: x / (1 + np.exp(-x)))(random.normal(size=n) * 2),
        "two": np.append(random.normal(-8, 1, size=n), random.normal(5, 0.3, size=n)),
        "far": np.append(random.normal(size=n), 1e30),
        "few": random.normal(size=12),
        "one": np.array([3.0]),
    }
    return np.asarray(values[name], dtype=np.float32)


NAMES = (
    *("normal", "relu", "negative", "laplace", "heavy", "lognormal", "uniform", "outlier"),
    *("clipped", "relu6", "levels", "silu", "two", "far", "few", "one"),
)
SCHEMES = {
    "uint8": ({"dtype": torch.uint8}, 0, 255, None),
    "int8 symmetric": ({"dtype": torch.int8, "qscheme": torch.per_tensor_symmetric}, -128, 127, 0),
    "4 bits": ({"dtype": torch.uint8, "quant_min": 0, "quant_max": 15}, 0, 15, None),
}


def simulated_error(
    mids: np.ndarray,
    weights: np.ndarray,
    low: np.ndarray,
    high: np.ndarray,
    scheme: tuple[object, int, int, int | None],
) -> np.ndarray:
    """Mean squared error of quantizing the points `mids` by each range; float64, (ranges,)."""
    _, quant_min, quant_max, zero = scheme
    errors = []
    for a, b in zip(low, high, strict=True):
        if zero is None:
            scale = (b - a) / (quant_max - quant_min)
            zero_point = np.clip(quant_min - np.rint(a / scale), quant_min, quant_max)
        else:
            scale, zero_point = max(-a, b) / ((quant_max - quant_min) / 2), zero
        quantized = np.clip(np.rint(mids / scale) + zero_point, quant_min, quant_max)
        errors.append(np.dot((mids - (quantized - zero_point) * scale) ** 2, weights) / weights.sum())
    return np.array(errors)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("scheme", SCHEMES.values(), ids=SCHEMES.keys())
def test_range_is_within_one_percent_of_the_best(
    name: str, scheme: tuple[dict[str, object], int, int, int | None]
) -> None:
    bins, points = 64, 20
    observer = HistogramObserver(bins=bins, **scheme[0])  # type: ignore[arg-type]  # a table of keywords
    x = sample(name)
    observer(torch.from_numpy(x))
    exponent, first = observer.bin_layout.tolist()
    width = math.ldexp(1.0, exponent)
    # Points evenly spread in each bin represent the values in it.
    mids = ((np.arange(first, first + bins)[:, None] + (np.arange(points) + 0.5) / points) * width).ravel()
    weights = np.repeat(observer.histogram.numpy().astype(np.float64), points)
    for limit in {float(x.min()), float(x.max())} - {0.0}:  # values on a limit count as where they are
        number = np.count_nonzero(x == limit)
        if number > x.size / 1024:
            weights[(math.floor(limit / width) - first) * points :][:points] -= number
            mids, weights = np.append(mids, limit), np.append(weights, number * points)
    mids, weights = mids[weights > 0], weights[weights > 0]
    low, high = min(float(x.min()), 0.0), max(float(x.max()), 0.0)
    lows = np.array([low, *[k * width for k in range(first, 1) if k * width > low]])
    highs = np.array([high, *[k * width for k in range(first + bins + 1) if 0 <= k * width < high]])
    if scheme[3] is None:
        pairs = np.array([(a, b) for a in lows for b in highs if a < b])
    else:
        largest = np.array([b for b in {*(-lows), *highs, max(-low, high)} if b > 0])
        pairs = np.stack((-largest, largest), axis=1)
    best = simulated_error(mids, weights, pairs[:, 0], pairs[:, 1], scheme).min()
    found = observer._best_range()
    error = simulated_error(mids, weights, np.array([found[0]]), np.array([found[1]]), scheme)[0]
    # The search integrates over a bin, the reference sums 12 points: they differ by 1 / 12**2 of the error in a bin.
    assert error <= best * 1.01 + width**2 / 12 / points**2


def errors_of_grids(
    values: np.ndarray, counts: np.ndarray, steps: np.ndarray, starts: list[int], levels: int
) -> np.ndarray:
    """Squared error of values, so many of each, on every grid: sums over the values of each quantized value. NumPy's
    own sorting and sums, float64, (starts, steps).
    """
    number, total, square = (np.concatenate(([0.0], np.cumsum(counts * values**k))) for k in (0, 1, 2))
    errors = np.empty((len(starts), len(steps)))
    for row, n_min in enumerate(starts):
        for column, step in enumerate(steps):
            places = np.arange(n_min, n_min + levels + 1) * step
            cuts = np.searchsorted(values, (places[1:] + places[:-1]) / 2)
            ends = np.concatenate(([0], cuts, [values.size]))
            here, sums, squares = (np.diff(table[ends]) for table in (number, total, square))
            errors[row, column] = np.sum(squares - 2 * places * sums + places**2 * here)
    return errors


@pytest.mark.parametrize("name", ["normal", "relu", "heavy", "lognormal", "relu6", "silu", "two", "outlier"])
@pytest.mark.parametrize("scheme", ["uint8", "int8 symmetric"])
@pytest.mark.parametrize("batches", [1, 8])
def test_a_full_histogram_is_within_one_percent_of_the_best(name: str, scheme: str, batches: int) -> None:
    """2048 bins, against all steps of the whole range in parts of 1/250 and every place of 0 near."""
    options, quant_min, quant_max, zero = SCHEMES[scheme]
    observer = HistogramObserver(**options)  # type: ignore[arg-type]  # a table of keywords
    x = sample(name)
    for batch in np.array_split(x, batches):
        observer(torch.from_numpy(batch))
    exponent, first = observer.bin_layout.tolist()
    width = math.ldexp(1.0, exponent)
    parts = (np.arange(first, first + 2048)[:, None] + (np.arange(8) + 0.5) / 8) * width
    counts = np.repeat(observer.histogram.numpy() / 8, 8)
    values = parts.ravel()
    for limit in {float(x.min()), float(x.max())} - {0.0}:
        number = np.count_nonzero(x == limit)
        if number > x.size / 1024:  # values on a limit count as where they are
            counts[(math.floor(limit / width) - first) * 8 :][:8] -= number / 8
            values, counts = np.append(values, limit), np.append(counts, number)
    order = np.argsort(values)
    values, counts = values[order], counts[order]
    low, high, levels = min(float(x.min()), 0.0), max(float(x.max()), 0.0), quant_max - quant_min
    whole = (high - low) / levels if zero is None else 2 * max(-low, high) / levels
    found_low, found_high = observer._best_range()
    step = (found_high - found_low) / levels
    start = round(found_low / step) if zero is None else quant_min - zero
    near = {round(low / whole) + i for i in (-2, -1, 0, 1, 2)} | {start + i for i in (-2, -1, 0, 1, 2)}
    starts = sorted(n for n in near if -levels <= n <= 0) if zero is None else [start]
    best = errors_of_grids(values, counts, whole * np.linspace(0.02, 1.01, 250), starts, levels).min()
    error = errors_of_grids(values, counts, np.array([step]), [start], levels)[0, 0]
    assert error <= best * 1.01 + counts.sum() * width**2 / 12 / 64


CLAMPED = {
    "hardtanh": (1.0, -1.0, 1.0),
    "relu6": (8.0, 0.0, 6.0),
    "uneven": (1.0, -0.9, 1.3),
    "rare": (1.0, -2.0, 2.0),
}


@pytest.mark.parametrize("name", CLAMPED)
@pytest.mark.parametrize("scheme", ["uint8", "int8 symmetric"])
def test_many_values_on_a_limit_are_quantized_well(name: str, scheme: str) -> None:
    """Against every scale in steps of 1/1000 and every zero point near: error on the data, not on the histogram."""
    deviation, smallest, largest = CLAMPED[name]
    x = np.clip(np.random.default_rng(3).normal(size=100_000) * deviation, smallest, largest).astype(np.float32)
    options, quant_min, quant_max, zero = SCHEMES[scheme]
    observer = HistogramObserver(**options)  # type: ignore[arg-type]  # a table of keywords
    observer(torch.from_numpy(x))

    def error(scale: float, zero_point: int) -> float:
        quantized = np.clip(np.rint(x / scale) + zero_point, quant_min, quant_max)
        return float(np.mean((x.astype(np.float64) - (quantized - zero_point) * scale) ** 2))

    whole = (largest - smallest) / 255 if zero is None else max(-smallest, largest) / 127.5
    near = round(quant_min - smallest / whole)
    zero_points = sorted({min(max(near + i, 0), 255) for i in (-1, 0, 1)}) if zero is None else [0]
    best = min(error(whole * share, z) for share in np.linspace(0.95, 1.02, 71) for z in zero_points)
    scale, zero_point = (value.item() for value in observer.calculate_qparams())
    assert error(scale, int(zero_point)) <= best * 1.01


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@given(batches=st.lists(st.lists(st.integers(-5, 5), max_size=8), min_size=1, max_size=5))
def test_limits_are_counted(dtype: torch.dtype, batches: list[list[int]]) -> None:
    values = [value for batch in batches for value in batch]
    observer = HistogramObserver()
    for batch in batches:
        observer(torch.tensor(batch, dtype=torch.float32).to(dtype))
    low, high = min(values, default=0), max(values, default=0)
    expected = [values.count(low) if low < 0 else 0, values.count(high) if high > 0 else 0]
    assert observer.limit_counts.tolist() == expected


@pytest.mark.parametrize("name", ["normal", "relu", "heavy"])
def test_error_on_the_data_is_not_above_that_of_the_whole_range(name: str) -> None:
    x = sample(name).astype(np.float64)
    errors = []
    for cls in (HistogramObserver, MinMaxObserver):
        observer = cls(dtype=torch.uint8)
        observer(torch.from_numpy(x))
        scale, zero_point = (value.item() for value in observer.calculate_qparams())
        quantized = np.clip(np.rint(x / scale) + zero_point, 0, 255)
        errors.append(np.mean((x - (quantized - zero_point) * scale) ** 2))
    assert errors[0] <= errors[1] * 1.01


@pytest.mark.parametrize("value", [0.0, 3.0, -3.0, 1e-42, -1e-42, 1e-30, 1e30, 3.4e38, -3.4e38])
@pytest.mark.parametrize("qscheme", [torch.per_tensor_affine, torch.per_tensor_symmetric])
def test_constants_are_exact_or_within_a_step(value: float, qscheme: torch.qscheme) -> None:
    observer = HistogramObserver(dtype=torch.int8, qscheme=qscheme)
    observer(torch.full((5,), value))
    scale, zero_point = (v.item() for v in observer.calculate_qparams())
    assert math.isfinite(scale)
    assert scale > 0
    quantized = np.clip(np.rint(value / scale) + zero_point, -128, 127)
    assert abs((quantized - zero_point) * scale - value) <= scale / 2 * (1 + 1e-4)


def test_a_range_away_from_zero_is_extended_to_include_it() -> None:
    observer = HistogramObserver(dtype=torch.uint8)
    x = np.linspace(1000, 1001, 50)
    observer(torch.from_numpy(x))
    scale, zero_point = (value.item() for value in observer.calculate_qparams())
    assert 0 <= zero_point <= 255
    quantized = np.clip(np.rint(x / scale) + zero_point, 0, 255)
    # One quantized value at their mean is best for all of them, for every step.
    assert np.mean((x - (quantized - zero_point) * scale) ** 2) <= np.var(x) * 1.05
    assert observer.min_val.item() == 1000.0


def test_both_ends_of_float32_fit() -> None:
    observer = HistogramObserver(dtype=torch.uint8)
    observer(torch.tensor([-3.4e38, 0.0, 1.0, 3.4e38]))
    observer(torch.tensor([1e-40, -1e-30]))
    assert int(observer.histogram.sum()) == 6
    assert math.isfinite(observer.calculate_qparams()[0].item())


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_uses_the_whole_range(dtype: torch.dtype) -> None:
    observer = HistogramObserver(dtype=dtype)
    observer(torch.tensor([-2.0, 7.0]))
    scale, zero_point = observer.calculate_qparams()
    assert scale.item() == np.float32(7.0) / np.float32(torch.finfo(dtype).max)
    assert zero_point.item() == 0


def test_fine_steps_use_the_whole_range() -> None:
    observer = HistogramObserver(dtype=torch.int16)
    observer(torch.from_numpy(sample("heavy")))
    reference = MinMaxObserver(dtype=torch.int16)
    reference(torch.from_numpy(sample("heavy")))
    assert observer.calculate_qparams() == reference.calculate_qparams()


@pytest.mark.parametrize(("count", "is_searched"), [(256, False), (257, True)])
@pytest.mark.parametrize("away", [0.0, 100.0])
def test_at_most_as_many_values_as_quantized_values_use_the_whole_range(
    count: int, away: float, *, is_searched: bool
) -> None:
    x = torch.cat([torch.zeros(1), torch.linspace(0.0, 1.0, count - 2), torch.tensor([1.5])]) + away
    observer, reference = HistogramObserver(dtype=torch.uint8), MinMaxObserver(dtype=torch.uint8)
    for part in torch.split(x, 100):
        assert observer(part) is part
        reference(part)
    # Away from 0, most quantized values are not used by any of these values, so a search can gain.
    is_whole = observer.calculate_qparams() == reference.calculate_qparams()
    assert is_whole == (not is_searched and not away)


def test_eps_is_the_smallest_scale() -> None:
    observer = HistogramObserver(dtype=torch.uint8, eps=2**-12)
    observer(torch.rand(100) * 1e-5)
    assert observer.calculate_qparams()[0].item() == 2**-12


def test_reset_histogram_empties_it() -> None:
    observer = HistogramObserver()
    observer(torch.tensor([5.0]))
    observer.reset_histogram()
    assert int(observer.histogram.sum()) == 0
    assert observer.limit_counts.tolist() == [0, 0]
    assert not observer.has_observed


def test_two_bins_are_enough() -> None:
    observer = HistogramObserver(bins=2, dtype=torch.uint8)
    observer(torch.tensor([-1.0, 3.0]))
    assert observer.histogram.tolist() == [1, 1]
    assert observer.bin_layout.tolist() == [2, -1]
    with pytest.raises(SpecError, match="2 bins"):
        HistogramObserver(bins=1)
