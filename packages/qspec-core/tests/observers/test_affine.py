"""Affine observers against a NumPy loop over the blocks; granularities against a table."""

import itertools
import math
import warnings

import numpy as np
import pytest
import torch
from torch import Tensor

from qspec_core import CalibrationError, SpecError, ops
from qspec_core.observers import (
    AffineQuantizedMinMaxObserver,
    AffineQuantizedMovingAverageMinMaxObserver,
    AffineQuantizedPlaceholderObserver,
    Granularity,
    MappingType,
    ObserverNeverRanWarning,
    PerAxis,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
    PerToken,
    TorchAODType,
    ZeroPointDomain,
    get_block_size,
)

UINT4, INT4, UINT2 = torch.uint4, torch.int4, torch.uint2  # type: ignore[attr-defined]  # torch's stubs leave them out
GRANULARITIES: list[tuple[Granularity, tuple[int, ...], tuple[int, ...]]] = [
    (PerTensor(), (2, 4, 6), (2, 4, 6)),
    (PerAxis(0), (2, 4, 6), (1, 4, 6)),
    (PerAxis(-1), (2, 4, 6), (2, 4, 1)),
    (PerGroup(3), (2, 4, 6), (1, 1, 3)),
    (PerRow(), (2, 4, 6), (1, 1, 6)),
    (PerRow(1), (2, 4, 6), (1, 4, 1)),
    (PerRow(-3), (2, 4, 6), (2, 1, 1)),
    (PerAxis(-3), (2, 4, 6), (1, 4, 6)),
    (PerToken(), (2, 4, 6), (1, 1, 6)),
    (PerBlock((1, 2, 3)), (2, 4, 6), (1, 2, 3)),
    (PerGroup(2), (4, 6), (1, 2)),
    (PerBlock((2, 3)), (4, 6), (2, 3)),
    (PerToken(), (6,), (6,)),
]
MAPPINGS = list(MappingType)


@pytest.mark.parametrize(("granularity", "shape", "block"), GRANULARITIES)
def test_block_sizes(granularity: Granularity, shape: tuple[int, ...], block: tuple[int, ...]) -> None:
    assert get_block_size(shape, granularity) == block


@pytest.mark.parametrize(
    ("granularity", "shape"),
    [
        (PerAxis(2), (4, 6)),
        (PerAxis(-3), (4, 6)),
        (PerRow(2), (4, 6)),
        (PerGroup(4), (4, 6)),
        (PerGroup(0), (4, 6)),
        (PerGroup(1), ()),
        (PerToken(), ()),
        (PerBlock((2,)), (4, 6)),
        (PerBlock((3, 3)), (4, 6)),
        (PerBlock((0, 3)), (4, 6)),
    ],
)
def test_granularities_that_do_not_fit(granularity: Granularity, shape: tuple[int, ...]) -> None:
    with pytest.raises(SpecError, match="shape") as caught:
        get_block_size(shape, granularity)
    assert str(granularity) in str(caught.value.found)


def blocks_of(x: np.ndarray, block: tuple[int, ...]) -> list[np.ndarray]:
    """The blocks of a tensor in row-major order."""
    steps = [range(0, size, part) for size, part in zip(x.shape, block, strict=True)]
    corners = itertools.product(*steps)
    return [x[tuple(slice(i, i + part) for i, part in zip(corner, block, strict=True))] for corner in corners]


def reference(low: float, high: float, mapping: MappingType, quant_min: int, quant_max: int) -> tuple[float, int]:
    low, high = min(low, 0.0), max(high, 0.0)
    if mapping is MappingType.ASYMMETRIC:
        scale = (high - low) / (quant_max - quant_min)
        return scale, int(np.clip(quant_min - np.rint(low / scale), quant_min, quant_max))
    middle = 0 if quant_min < 0 else (quant_min + quant_max + 1) // 2
    if mapping is MappingType.SYMMETRIC_NO_CLIPPING_ERR and quant_min < 0:
        return max(low / quant_min, high / quant_max), 0
    return max(-low, high) / ((quant_max - quant_min) / 2), middle


@pytest.mark.parametrize("mapping", MAPPINGS)
@pytest.mark.parametrize(("granularity", "shape", "block"), GRANULARITIES)
@pytest.mark.parametrize(("dtype", "quant_min", "quant_max"), [(torch.int8, -128, 127), (UINT4, 0, 15)])
def test_parameters_of_each_block(
    mapping: MappingType,
    granularity: Granularity,
    shape: tuple[int, ...],
    block: tuple[int, ...],
    dtype: torch.dtype,
    quant_min: int,
    quant_max: int,
) -> None:
    observer = AffineQuantizedMinMaxObserver(mapping, dtype, granularity)
    batches = [torch.randn(shape) - 0.5, torch.randn(shape) * 2]
    for batch in batches:
        assert observer(batch) is batch
    observer(torch.empty(0))
    both = [blocks_of(batch.double().numpy(), block) for batch in batches]
    expected = [
        reference(min(a.min(), b.min()), max(a.max(), b.max()), mapping, quant_min, quant_max)
        for a, b in zip(*both, strict=True)
    ]
    scale, zero_point = observer.calculate_qparams()
    assert scale.dtype == torch.float32
    assert zero_point.dtype == torch.int32
    grid = [n // b for n, b in zip(shape, block, strict=True) if n != b]
    assert list(scale.shape) == list(zero_point.shape) == grid
    np.testing.assert_allclose(scale.reshape(-1).numpy(), [scale for scale, _ in expected], rtol=1e-6)
    assert zero_point.reshape(-1).tolist() == [zero_point for _, zero_point in expected]


@pytest.mark.parametrize(
    ("dtype", "kept", "limits"),
    [
        (torch.int8, torch.int8, (-128, 127)),
        (torch.uint8, torch.uint8, (0, 255)),
        (INT4, torch.int8, (-8, 7)),
        (UINT2, torch.uint8, (0, 3)),
        (TorchAODType.INT1, torch.int8, (-1, 0)),
        (TorchAODType.INT4, torch.int8, (-8, 7)),
        (TorchAODType.INT7, torch.int8, (-64, 63)),
        (torch.int16, torch.int16, (-(2**15), 2**15 - 1)),
    ],
)
def test_ranges(dtype: torch.dtype | TorchAODType, kept: torch.dtype, limits: tuple[int, int]) -> None:
    observer = AffineQuantizedMinMaxObserver(MappingType.SYMMETRIC, dtype, PerTensor())
    assert (observer.dtype, observer.quant_min, observer.quant_max) == (kept, *limits)
    custom = AffineQuantizedMinMaxObserver(MappingType.SYMMETRIC, dtype, PerTensor(), quant_min=-1 if limits[0] else 0)
    assert (custom.quant_min, custom.quant_max) == (-1 if limits[0] else 0, limits[1])


def test_moving_average() -> None:
    observer = AffineQuantizedMovingAverageMinMaxObserver(
        MappingType.ASYMMETRIC, torch.uint8, PerAxis(0), averaging_constant=0.25
    )
    batches = [torch.randn(3, 5) for _ in range(3)]
    low, high = batches[0].amin(1), batches[0].amax(1)
    for batch in batches[1:]:
        low, high = low + 0.25 * (batch.amin(1) - low), high + 0.25 * (batch.amax(1) - high)
    for batch in (*batches, torch.empty(3, 0)):
        assert observer(batch) is batch
    assert torch.equal(observer.min_val, low)
    assert torch.equal(observer.max_val, high)


def test_a_dynamic_average_uses_only_the_newest_input() -> None:
    observer = AffineQuantizedMovingAverageMinMaxObserver(
        MappingType.ASYMMETRIC, torch.int8, PerToken(), averaging_constant=1, is_dynamic=True
    )
    observer(torch.randn(4, 5) * 100)
    x = torch.randn(2, 5)
    observer(x)
    assert torch.equal(observer.max_val, x.amax(1))
    with pytest.raises(SpecError, match="dynamic"):
        AffineQuantizedMovingAverageMinMaxObserver(MappingType.ASYMMETRIC, torch.int8, PerToken(), is_dynamic=True)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        (torch.float8_e4m3fn, {}),
        (torch.uint8, {"zero_point_domain": ZeroPointDomain.FLOAT}),
        (torch.uint8, {"preserve_zero": False}),
        (torch.int8, {"zero_point_domain": ZeroPointDomain.NONE}),
        (torch.int8, {"quant_min": 1}),
    ],
)
def test_unsupported_schemes_are_refused(dtype: torch.dtype, options: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        AffineQuantizedMinMaxObserver(MappingType.ASYMMETRIC, dtype, PerTensor(), **options)  # type: ignore[arg-type]  # keywords


def test_unsigned_values_without_zero_point_are_refused() -> None:
    for mapping in (MappingType.SYMMETRIC, MappingType.SYMMETRIC_NO_CLIPPING_ERR):
        with pytest.raises(SpecError, match="zero point"):
            AffineQuantizedMinMaxObserver(mapping, torch.uint8, PerTensor(), zero_point_domain=ZeroPointDomain.NONE)


def test_without_zero_point_0_is_exact() -> None:
    observer = AffineQuantizedMinMaxObserver(
        MappingType.SYMMETRIC, torch.int8, PerTensor(), zero_point_domain=ZeroPointDomain.NONE
    )
    observer(torch.tensor([1.0, 3.0]))
    assert observer.calculate_qparams()[1].item() == 0


def test_dtypes_and_smallest_scale() -> None:
    observer = AffineQuantizedMinMaxObserver(
        MappingType.SYMMETRIC,
        torch.int8,
        PerAxis(0),
        eps=0.5,
        scale_dtype=torch.float64,
        zero_point_dtype=torch.int64,
    )
    observer(torch.ones(2, 3))
    scale, zero_point = observer.calculate_qparams()
    assert scale.dtype == torch.float64
    assert zero_point.dtype == torch.int64
    assert scale.tolist() == [0.5, 0.5]


def test_a_changed_number_of_blocks_is_refused() -> None:
    observer = AffineQuantizedMinMaxObserver(MappingType.SYMMETRIC, torch.int8, PerGroup(2))
    observer(torch.ones(2, 4))
    with pytest.raises(CalibrationError, match="blocks") as caught:
        observer(torch.ones(2, 6))
    assert "(2, 2)" in str(caught.value.expected)
    assert observer.min_val.shape == (2, 2)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_values_that_are_not_finite_are_refused(value: float) -> None:
    observer = AffineQuantizedMinMaxObserver(MappingType.SYMMETRIC, torch.int8, PerAxis(0))
    with pytest.raises(CalibrationError, match="not finite"):
        observer(torch.tensor([[1.0, value]]))
    assert not observer.has_observed


def test_an_observer_without_data_warns() -> None:
    observer = AffineQuantizedMinMaxObserver(MappingType.SYMMETRIC, torch.int8, PerAxis(0))
    with pytest.warns(ObserverNeverRanWarning):
        scale, zero_point = observer.calculate_qparams()
    assert (scale.item(), zero_point.item()) == (1.0, 0)


def test_state_and_reset() -> None:
    def build() -> AffineQuantizedMinMaxObserver:
        return AffineQuantizedMinMaxObserver(MappingType.SYMMETRIC, torch.int8, PerGroup(2))

    observer, copy = build(), build()
    assert observer.min_val.numel() == observer.max_val.numel() == 0
    observer(torch.randn(3, 4))
    copy.load_state_dict(observer.state_dict())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.equal(copy.calculate_qparams()[0], observer.calculate_qparams()[0])
    copy.reset_min_max_vals()
    assert not copy.has_observed
    assert copy.min_val.numel() == copy.max_val.numel() == 0
    copy(torch.randn(3, 8))  # other blocks are welcome again


@pytest.mark.parametrize("first", [1, 2])
def test_a_tensor_is_one_block_whatever_its_shape(first: int) -> None:
    observer = AffineQuantizedMinMaxObserver(MappingType.ASYMMETRIC, torch.uint8, PerTensor())
    batches = torch.randn(first, 3), torch.randn(3 - first, 1), torch.randn(4)
    for batch in batches:
        observer(batch)
    values = torch.cat([batch.flatten() for batch in batches])
    low, high = min(values.min().item(), 0.0), max(values.max().item(), 0.0)
    assert observer.calculate_qparams()[0].item() == pytest.approx((high - low) / 255)


@pytest.mark.parametrize("value", [0.0, 2.0, -2.0])
def test_blocks_of_one_value_count_as_data(value: float) -> None:
    observer = AffineQuantizedMinMaxObserver(MappingType.ASYMMETRIC, torch.uint8, PerTensor())
    observer(torch.full((2, 3), value))
    assert observer.has_observed
    scale, zero_point = observer.calculate_qparams()
    assert scale.item() == pytest.approx(max(abs(value) / 255, 2**-23))
    assert zero_point.item() == (255 if value < 0 else 0)


def test_the_form_without_data_has_a_placeholder_for_each_block() -> None:
    observer = AffineQuantizedMinMaxObserver(MappingType.SYMMETRIC, torch.int8, PerAxis(0))
    with pytest.warns(ObserverNeverRanWarning):
        form = observer.converted_form((3, 4))
    assert isinstance(form.scale, Tensor)
    assert isinstance(form.zero_point, Tensor)
    assert (form.scale.tolist(), form.zero_point.tolist()) == ([1.0] * 3, [0] * 3)
    observer(torch.tensor([[1.0], [-2.0], [4.0]]))
    form = observer.converted_form((3, 1))
    assert isinstance(form.scale, Tensor)
    np.testing.assert_allclose(form.scale.numpy(), np.array([1.0, 2.0, 4.0]) / 127.5, rtol=1e-6)


@pytest.mark.parametrize(
    ("granularity", "mapping", "shape", "target"),
    [
        (PerTensor(), MappingType.SYMMETRIC, (2, 5), ops.CHOOSE_QPARAMS_SYMMETRIC),
        (PerTensor(), MappingType.ASYMMETRIC, (2, 5), ops.CHOOSE_QPARAMS),
        (PerToken(), MappingType.SYMMETRIC, (5,), ops.CHOOSE_QPARAMS_PER_TOKEN),
        (PerToken(), MappingType.ASYMMETRIC, (2, 5), ops.CHOOSE_QPARAMS_PER_TOKEN_ASYMMETRIC),
        (PerGroup(5), MappingType.SYMMETRIC, (2, 10), ops.CHOOSE_QPARAMS_PER_TOKEN),
    ],
)
def test_operators_that_find_parameters_at_run_time(
    granularity: Granularity, mapping: MappingType, shape: tuple[int, ...], target: object
) -> None:
    observer = AffineQuantizedPlaceholderObserver(mapping, torch.int8, granularity, is_dynamic=True)
    form = observer.converted_form(shape)
    assert form.choose is not None
    assert form.choose.target is target


def test_placeholder_returns_its_input() -> None:
    observer = AffineQuantizedPlaceholderObserver(MappingType.ASYMMETRIC, torch.int8, PerToken(), is_dynamic=True)
    x: Tensor = torch.full((2,), math.nan)
    assert observer(x) is x


@pytest.mark.parametrize(("quant_min", "is_served"), [(-128, True), (-127, True), (-126, False)])
def test_ranges_supported_by_the_operator_for_symmetric_tokens(quant_min: int, is_served: bool) -> None:
    observer = AffineQuantizedPlaceholderObserver(
        MappingType.SYMMETRIC, torch.int8, PerToken(), quant_min=quant_min, quant_max=127, is_dynamic=True
    )
    if is_served:
        form = observer.converted_form(torch.Size((2, 5)))
        assert form.choose is not None
        assert form.choose.target is ops.CHOOSE_QPARAMS_PER_TOKEN
    else:
        with pytest.raises(SpecError, match="AffineQuantizedPlaceholderObserver"):
            observer.converted_form(torch.Size((2, 5)))
