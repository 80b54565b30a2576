"""Scale and zero point against plain NumPy arithmetic."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from qspec_core import SpecError
from qspec_core.observers import MinMaxObserver, PerChannelMinMaxObserver
from qspec_core.observers._arithmetic import choose_qparams, choose_qparams_of_range, symmetric_zero_point

LIMITS = st.floats(-(2.0**100), 2.0**100, width=32, allow_subnormal=False)
RANGES = st.sampled_from(
    [(torch.uint8, 0, 255), (torch.int8, -128, 127), (torch.uint8, 0, 15), (torch.int16, -300, 200)]
)
EPS = np.finfo(np.float32).eps


def observed(low: float, high: float, **kwargs: object) -> tuple[np.float32, int]:
    observer = MinMaxObserver(**kwargs)  # type: ignore[arg-type]  # a table of keywords
    observer(torch.tensor([low, high]))
    scale, zero_point = observer.calculate_qparams()
    assert scale.dtype == torch.float32
    assert zero_point.dtype == torch.int64
    assert scale.shape == zero_point.shape == (1,)
    return np.float32(scale.item()), int(zero_point.item())


@given(LIMITS, LIMITS, RANGES)
def test_affine_divides_the_range_extended_to_0_into_equal_steps(
    a: float, b: float, kind: tuple[torch.dtype, int, int]
) -> None:
    dtype, quant_min, quant_max = kind
    low, high = np.float32(min(a, b, 0.0)), np.float32(max(a, b, 0.0))
    scale, zero_point = observed(a, b, dtype=dtype, quant_min=quant_min, quant_max=quant_max)
    expected = max((high - low) / np.float32(quant_max - quant_min), np.float32(EPS))
    assert scale == expected
    assert zero_point == int(np.clip(quant_min - np.rint(low / expected), quant_min, quant_max))


@given(LIMITS, LIMITS, RANGES)
def test_zero_is_exact_and_rounding_loses_half_a_step(a: float, b: float, kind: tuple[torch.dtype, int, int]) -> None:
    dtype, quant_min, quant_max = kind
    scale, zero_point = observed(a, b, dtype=dtype, quant_min=quant_min, quant_max=quant_max)
    assert quant_min <= zero_point <= quant_max  # so that q(0) = zero_point, which gives back 0
    points = np.linspace(min(a, b), max(a, b), 50)
    quantized = np.clip(np.rint(points / np.float64(scale)) + zero_point, quant_min, quant_max)
    error = np.abs((quantized - zero_point) * np.float64(scale) - points)
    # The zero point is rounded as well, which moves an end of the range by up to half a step; float32 moves it by
    # the rounding of scale, a few parts in 2**24 of the whole range.
    outside = (points < scale * (quant_min - zero_point)) | (points > scale * (quant_max - zero_point))
    slack = 4 * EPS * max(abs(a), abs(b))
    assert np.all(error <= scale / 2 + slack), (error.max(), scale)
    assert np.all(error[~outside] <= scale / 2 * (1 + 1e-6))


@given(LIMITS, LIMITS)
def test_symmetric_takes_the_larger_side(a: float, b: float) -> None:
    largest = np.float32(max(abs(a), abs(b)))
    for dtype, low, high, zero in (
        (torch.int8, -128, 127, 0),
        (torch.uint8, 0, 255, 128),
        (torch.uint16, 0, 65535, 32768),
    ):
        scale, zero_point = observed(a, b, dtype=dtype, qscheme=torch.per_tensor_symmetric)
        assert scale == max(largest / np.float32((high - low) / 2), np.float32(EPS))
        assert zero_point == zero


@pytest.mark.parametrize(
    ("kwargs", "zero_point"),
    [
        ({"dtype": torch.uint8, "quant_min": 0, "quant_max": 255}, 127),
        ({"dtype": torch.quint8, "quant_min": 0, "quant_max": 127}, 63),
        ({"dtype": torch.quint8}, 128),
        ({"dtype": torch.quint8, "reduce_range": True}, 64),
        ({"dtype": torch.quint4x2}, 8),
        ({"dtype": torch.int8, "quant_min": -127, "quant_max": 127}, 0),
        ({"dtype": torch.qint32}, 0),
    ],
)
def test_symmetric_zero_point(kwargs: dict[str, object], zero_point: int) -> None:
    assert observed(-1.0, 3.0, qscheme=torch.per_tensor_symmetric, **kwargs)[1] == zero_point


@pytest.mark.parametrize(
    ("kwargs", "expected"),
    [
        ({"dtype": torch.int8}, (-128, 127)),
        ({"dtype": torch.qint8, "reduce_range": True}, (-64, 63)),
        ({"dtype": torch.int8, "reduce_range": True}, (-64, 63)),
        ({"dtype": torch.quint8, "reduce_range": True}, (0, 127)),
        ({"dtype": torch.int8, "quant_min": -128, "quant_max": 0}, (-128, 0)),
        ({"dtype": torch.uint8, "reduce_range": True}, (0, 127)),
        ({"dtype": torch.uint8, "reduce_range": True, "quant_min": 0, "quant_max": 100}, (0, 50)),
        ({"dtype": torch.int8, "reduce_range": True, "quant_min": -127, "quant_max": 127}, (-64, 63)),
        ({"dtype": torch.int16, "reduce_range": True}, (-(2**15), 2**15 - 1)),
        ({"dtype": torch.uint4}, (0, 15)),  # type: ignore[attr-defined]  # missing in torch's stubs
        ({"dtype": torch.int32}, (-(2**31), 2**31 - 1)),
        ({"dtype": torch.uint8, "quant_max": 100}, (0, 100)),
        ({"dtype": torch.uint8, "reduce_range": True, "quant_max": 100}, (0, 50)),
        ({"dtype": torch.int8, "reduce_range": True, "quant_min": -100}, (-50, 63)),
        ({"dtype": torch.int8, "quant_min": 0}, (0, 127)),
        ({"dtype": torch.float8_e4m3fn}, (-448.0, 448.0)),
    ],
)
def test_quantized_range(kwargs: dict[str, object], expected: tuple[float, float]) -> None:
    observer = MinMaxObserver(**kwargs)  # type: ignore[arg-type]  # a table of keywords
    assert (observer.quant_min, observer.quant_max) == expected


@pytest.mark.parametrize(
    "kwargs",
    [
        {"dtype": torch.uint8, "quant_min": 0, "quant_max": 70000},
        {"dtype": torch.int8, "quant_min": 1, "quant_max": 127},
        {"dtype": torch.int8, "quant_min": -128, "quant_max": -1},
        {"dtype": torch.uint8, "quant_min": 0, "quant_max": 0},
        {"dtype": torch.float16},
    ],
)
def test_impossible_ranges_are_refused(kwargs: dict[str, object]) -> None:
    with pytest.raises(SpecError) as error:
        MinMaxObserver(**kwargs)  # type: ignore[arg-type]  # a table of keywords
    assert "dtype" in str(error.value.found) or error.value.found is kwargs["dtype"]


@pytest.mark.parametrize("qscheme", [torch.per_tensor_affine, torch.per_tensor_symmetric])
def test_eps_is_the_smallest_scale(qscheme: torch.qscheme) -> None:
    assert observed(0.0, 1e-6, qscheme=qscheme, eps=2**-12)[0] == np.float32(2**-12)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_float8_maps_the_largest_value_to_its_largest(dtype: torch.dtype) -> None:
    scale, zero_point = observed(-6.0, 2.0, dtype=dtype)
    assert scale == np.float32(6.0) / np.float32(torch.finfo(dtype).max)
    assert zero_point == 0


def test_float_zero_points() -> None:
    x = torch.tensor([[-1.0, 3.0], [2.0, 4.0], [5.0, 5.0]])
    observer = PerChannelMinMaxObserver(dtype=torch.quint8, qscheme=torch.per_channel_affine_float_qparams)
    observer(x)
    scale, zero_point = observer.calculate_qparams()
    expected = np.array([4 / 255, 2 / 255, 1.0], dtype=np.float32)  # a constant channel has no scale of its own
    np.testing.assert_allclose(scale.numpy(), expected, rtol=1e-7)
    np.testing.assert_allclose(zero_point.numpy(), -np.array([-1.0, 2.0, 5.0]) / expected, rtol=1e-6)
    assert zero_point.dtype == torch.float32


def test_a_range_wider_than_float32_has_a_finite_scale() -> None:
    scale, zero_point = observed(-3e38, 3e38, dtype=torch.uint8)
    np.testing.assert_allclose(scale, 6e38 / 255, rtol=1e-6)
    assert zero_point == 128


@given(
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.sampled_from([torch.per_tensor_affine, torch.per_tensor_symmetric]),
    st.sampled_from(
        [
            (torch.uint8, 0, 255),
            (torch.int8, -127, 127),
            (torch.quint8, 0, 127),
            (torch.int16, -300, 200),
            (torch.qint32, -(2**31), 2**31 - 1),
            (torch.float8_e4m3fn, -448.0, 448.0),
        ]
    ),
    st.sampled_from([EPS, np.float32(2**-12)]),
    st.booleans(),
)
def test_python_numbers_and_tensors_give_the_same_bits(
    a: float,
    b: float,
    qscheme: torch.qscheme,
    kind: tuple[torch.dtype, float, float],
    eps: np.float32,
    has_custom_range: bool,
) -> None:
    dtype, quant_min, quant_max = kind
    low, high = min(a, b), max(a, b)
    options = {"quant_min": quant_min, "quant_max": quant_max, "dtype": dtype, "qscheme": qscheme}
    options["has_custom_range"] = has_custom_range
    scale, zero_point = choose_qparams(
        torch.tensor(low),
        torch.tensor(high),
        eps=torch.tensor([eps]),
        **options,  # type: ignore[arg-type]  # a table of keywords
    )
    found = choose_qparams_of_range(low, high, eps=float(eps), **options)  # type: ignore[arg-type]  # as above
    assert found == (scale.item(), zero_point.item())


def test_float_zero_points_of_a_range_with_negative_values() -> None:
    observer = PerChannelMinMaxObserver(dtype=torch.qint8, qscheme=torch.per_channel_affine_float_qparams)
    observer(torch.tensor([[-1.0, 3.0], [2.0, 2.5]]))
    scale, zero_point = observer.calculate_qparams()
    np.testing.assert_allclose(scale.numpy(), np.array([4.0, 0.5]) / 255, rtol=1e-6)
    np.testing.assert_allclose(zero_point.numpy(), [1.0 / (4.0 / 255), -2.0 / (0.5 / 255)], rtol=1e-6)


@pytest.mark.parametrize(
    ("low", "high", "dtype", "is_custom", "expected"),
    [
        (0, 4, torch.uint8, False, 2),
        (0, 4, torch.uint8, True, 2),
        (0, 5, torch.uint8, False, 3),
        (0, 5, torch.uint8, True, 2),
        (-4, 5, torch.int8, False, 0),
        (-448.0, 448.0, torch.float8_e4m3fn, False, 0),
    ],
)
def test_symmetric_zero_point_of_a_range(
    low: float, high: float, dtype: torch.dtype, is_custom: bool, expected: int
) -> None:
    assert symmetric_zero_point(low, high, dtype, has_custom_range=is_custom) == expected


@pytest.mark.parametrize("qscheme", [torch.per_channel_affine, torch.per_channel_symmetric])
@pytest.mark.parametrize(("dtype", "quant_min", "quant_max"), [(torch.uint8, 0, 255), (torch.int8, -100, 100)])
def test_channels_equal_float32_arithmetic(
    qscheme: torch.qscheme, dtype: torch.dtype, quant_min: int, quant_max: int
) -> None:
    low = np.array([-1.0, 0.25, -3.0, -2e38, 0.0, -7.0], dtype=np.float32)
    high = np.array([2.0, 0.5, -0.5, 3e38, 0.0, 1.0], dtype=np.float32)
    scale, zero_point = choose_qparams(
        torch.from_numpy(low),
        torch.from_numpy(high),
        quant_min=quant_min,
        quant_max=quant_max,
        dtype=dtype,
        qscheme=qscheme,
        eps=torch.tensor([EPS]),
    )
    a, b = np.minimum(low, 0).astype(np.float64), np.maximum(high, 0).astype(np.float64)
    if qscheme == torch.per_channel_symmetric:
        steps = np.maximum(-a, b) / ((quant_max - quant_min) / 2)
        zeros = np.full(6, 128 if dtype == torch.uint8 else 0)
    else:
        steps = (b - a) / (quant_max - quant_min)
        with np.errstate(invalid="ignore"):
            zeros = np.clip(quant_min - np.rint(np.nan_to_num(a / steps)), quant_min, quant_max)
    np.testing.assert_allclose(scale.numpy(), np.maximum(steps, EPS), rtol=1e-6)
    np.testing.assert_array_equal(zero_point.numpy(), zeros)
