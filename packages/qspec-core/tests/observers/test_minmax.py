"""Min-max observers, per tensor and per channel, against NumPy and loops."""

import copy
import io
import pickle
import warnings
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from qspec_core import CalibrationError, SourceLocation, SpecError
from qspec_core.observers import (
    HistogramObserver,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    ObserverNeverRanWarning,
    PerChannelMinMaxObserver,
    UniformQuantizationObserverBase,
)

RANGED = (
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    PerChannelMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    HistogramObserver,
)
every_observer = pytest.mark.parametrize("cls", RANGED)
FLOATS = st.floats(-1e6, 1e6, width=32)


@given(st.lists(st.lists(FLOATS, max_size=6), min_size=1, max_size=5), st.randoms())
def test_order_of_batches_does_not_matter(batches: list[list[float]], random: "np.random.Generator") -> None:
    values = [value for batch in batches for value in batch]
    for _ in range(2):
        observer = MinMaxObserver()
        for batch in batches:
            observer(torch.tensor(batch, dtype=torch.float32))
        assert observer.has_observed == bool(values)
        if values:
            assert (observer.min_val.item(), observer.max_val.item()) == (min(values), max(values))
        random.shuffle(batches)


def test_moving_average_follows_its_formula() -> None:
    batches = [np.array(b, dtype=np.float32) for b in ([-1, 2, 5], [-3, 1], [0, 10])]
    observer = MovingAverageMinMaxObserver(averaging_constant=0.25)
    low, high = batches[0].min(), batches[0].max()
    observer(torch.from_numpy(batches[0]))
    for batch in batches[1:]:
        observer(torch.from_numpy(batch))
        low, high = 0.75 * low + 0.25 * batch.min(), 0.75 * high + 0.25 * batch.max()
    np.testing.assert_allclose([observer.min_val.item(), observer.max_val.item()], [low, high], rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1, 2])
@pytest.mark.parametrize("qscheme", [torch.per_channel_affine, torch.per_channel_symmetric])
def test_each_channel_equals_a_tensor_of_its_own(axis: int, qscheme: torch.qscheme) -> None:
    batches = [torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(seed)) for seed in range(2)]
    observer = PerChannelMinMaxObserver(ch_axis=axis, dtype=torch.int8, qscheme=qscheme)
    for batch in batches:
        observer(batch)
    scale, zero_point = observer.calculate_qparams()
    single = torch.per_tensor_affine if qscheme == torch.per_channel_affine else torch.per_tensor_symmetric
    for channel in range(batches[0].shape[axis]):
        reference = MinMaxObserver(dtype=torch.int8, qscheme=single)
        for batch in batches:
            reference(batch.select(axis, channel))
        expected_scale, expected_zero_point = reference.calculate_qparams()
        assert scale[channel] == expected_scale
        assert zero_point[channel] == expected_zero_point


def test_moving_average_per_channel_follows_its_formula() -> None:
    first, second = torch.tensor([[-1.0, 1.0], [-2.0, 4.0]]), torch.tensor([[-3.0, 5.0], [0.0, 2.0]])
    observer = MovingAveragePerChannelMinMaxObserver(averaging_constant=0.5)
    observer(first)
    observer(second)
    assert observer.min_val.tolist() == [-2.0, -1.0]
    assert observer.max_val.tolist() == [3.0, 3.0]


@every_observer
@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_values_not_finite_are_refused_and_change_nothing(
    cls: type[UniformQuantizationObserverBase], bad: float
) -> None:
    observer = cls()
    observer(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    before = copy.deepcopy(observer.state_dict())
    observer.where = SourceLocation("conv2d", "block.0", "model.py:3: y = conv(x)")
    with pytest.raises(CalibrationError) as error:
        observer(torch.tensor([[1.0, bad], [bad, 4.0]]))
    assert error.value.where == observer.where
    assert "2 of 4" in error.value.problem
    assert "conv2d" in str(error.value)
    assert all(torch.equal(before[name], value) for name, value in observer.state_dict().items())


@every_observer
def test_empty_batches_are_ignored(cls: type[UniformQuantizationObserverBase]) -> None:
    observer = cls()
    empty = torch.empty(0, 3)
    assert observer(empty) is empty
    assert not observer.has_observed


@every_observer
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_float_types_are_observed_and_returned_as_they_are(
    cls: type[UniformQuantizationObserverBase], dtype: torch.dtype
) -> None:
    observer = cls()
    x = torch.tensor([[-1.0, 2.0], [0.5, 3.0]], dtype=dtype, requires_grad=True)
    assert observer(x) is x
    assert observer.min_val.min().item() == -1.0
    assert observer.max_val.max().item() == 3.0
    assert not observer.min_val.requires_grad


@every_observer
def test_an_observer_that_never_ran_warns_once(cls: type[UniformQuantizationObserverBase]) -> None:
    observer = cls()
    observer.where = SourceLocation("relu_3", "features", None)
    with pytest.warns(ObserverNeverRanWarning, match="relu_3"):
        scale, zero_point = observer.calculate_qparams()
    assert (scale.tolist(), zero_point.tolist()) == ([1.0], [0])
    assert zero_point.dtype == torch.int64
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        observer.calculate_qparams()


@every_observer
def test_state_round_trip(cls: type[UniformQuantizationObserverBase]) -> None:
    observer, other = cls(), cls()
    observer(torch.randn(4, 8, generator=torch.Generator().manual_seed(0)))
    file = io.BytesIO()
    torch.save(observer.state_dict(), file)
    file.seek(0)
    other.load_state_dict(torch.load(file))
    assert other.has_observed
    assert all(torch.equal(a, b) for a, b in zip(observer.calculate_qparams(), other.calculate_qparams(), strict=True))
    more = torch.randn(4, 8, generator=torch.Generator().manual_seed(1)) * 9
    observer(more)
    other(more)  # it goes on from there
    assert all(torch.equal(value, other.state_dict()[name]) for name, value in observer.state_dict().items())


@every_observer
def test_copies_and_pickles_are_independent(cls: type[UniformQuantizationObserverBase]) -> None:
    observer = cls()
    weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    observer(weight)
    for other in (copy.deepcopy(observer), pickle.loads(pickle.dumps(observer))):
        other(weight.detach() * 100)
        other(weight)
        assert other.max_val.max().item() > 4.0
        assert observer.max_val.max().item() == 4.0


@every_observer
def test_reset_forgets(cls: type[UniformQuantizationObserverBase]) -> None:
    observer = cls()
    x = torch.tensor([[1.0, -2.0], [3.0, 4.0]])
    observer(x)
    once = [value.clone() for value in observer.state_dict().values()]
    observer.reset_min_max_vals()
    assert not observer.has_observed
    observer(x)
    assert all(torch.equal(a, b) for a, b in zip(once, observer.state_dict().values(), strict=True))


@pytest.mark.parametrize("cls", [MinMaxObserver, PerChannelMinMaxObserver])
def test_an_unchanged_constant_is_observed_once(
    cls: type[MinMaxObserver | PerChannelMinMaxObserver], monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []
    owner, name = (torch, "aminmax") if cls is MinMaxObserver else (torch.Tensor, "amin")
    original = getattr(owner, name)

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        return original(*args, **kwargs)

    monkeypatch.setattr(owner, name, counted)
    observer = cls()
    weight = nn.Parameter(torch.tensor([[1.0, 2.0], [3.0, 4.0]]))
    observer(weight)
    observer(weight)
    assert len(calls) == 1
    with torch.no_grad():
        weight.mul_(10)
    observer(weight)
    assert observer.max_val.max().item() == 40.0
    weight.data = torch.full((2, 2), 50.0)
    observer(weight)
    assert observer.max_val.max().item() == 50.0
    observer.load_state_dict(cls().state_dict() if cls is MinMaxObserver else observer.state_dict())
    observer(weight)
    assert observer.max_val.max().item() == 50.0
    assert len(calls) == 4
    with torch.inference_mode():  # such tensors count no versions
        constant = torch.ones(2, 2)
        observer(constant)
        observer(constant.mul_(60))
    assert observer.max_val.max().item() == 60.0


def test_a_channel_axis_that_the_tensor_lacks_is_refused() -> None:
    with pytest.raises(CalibrationError) as error:
        PerChannelMinMaxObserver(ch_axis=2)(torch.ones(2, 2))
    assert error.value.found == "shape (2, 2), ch_axis=2"


def test_a_changed_number_of_channels_is_refused() -> None:
    observer = PerChannelMinMaxObserver()
    observer(torch.ones(2, 2))
    with pytest.raises(CalibrationError) as error:
        observer(torch.ones(3, 2))
    assert error.value.expected == "2 channels"


@pytest.mark.parametrize(
    ("cls", "kwargs"),
    [
        (MinMaxObserver, {"qscheme": torch.per_channel_affine}),
        (PerChannelMinMaxObserver, {"qscheme": torch.per_tensor_affine}),
        (HistogramObserver, {"qscheme": torch.per_channel_symmetric}),
        (PerChannelMinMaxObserver, {"is_dynamic": True}),
        (HistogramObserver, {"is_dynamic": True}),
        (MovingAverageMinMaxObserver, {"is_dynamic": True}),
        (MovingAverageMinMaxObserver, {"averaging_constant": 0.0}),
        (MovingAveragePerChannelMinMaxObserver, {"averaging_constant": 1.5}),
        (HistogramObserver, {"bins": 1}),
    ],
)
def test_unsupported_options_are_refused(cls: type[UniformQuantizationObserverBase], kwargs: dict[str, object]) -> None:
    with pytest.raises(SpecError):
        cls(**kwargs)  # type: ignore[arg-type]  # a table of keywords


def test_dynamic_with_an_averaging_constant_of_1() -> None:
    assert MovingAverageMinMaxObserver(averaging_constant=1, is_dynamic=True).is_dynamic
    assert MinMaxObserver(is_dynamic=True).is_dynamic


@every_observer
def test_keywords_of_other_observers_are_ignored_and_unknown_ones_refused(
    cls: type[UniformQuantizationObserverBase],
) -> None:
    assert cls(ch_axis=0).dtype == torch.quint8
    with pytest.raises(TypeError, match="quantmin"):
        cls(quantmin=0)


@every_observer
def test_buffers_have_their_pytorch_names(cls: type[UniformQuantizationObserverBase]) -> None:
    names = set(cls().state_dict())
    assert {"eps", "min_val", "max_val"} <= names
    assert ("histogram" in names) == (cls is HistogramObserver)
    assert "min_val=" in repr(cls())


def test_a_users_class_gets_the_whole_range_of_its_dtype() -> None:
    class Plain(UniformQuantizationObserverBase):
        """Implements only the abstract methods."""

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x

    observer = Plain()
    assert (observer.dtype, observer.quant_min, observer.quant_max) == (torch.quint8, 0, 255)


def test_an_averaging_constant_of_1_keeps_only_the_newest_batch() -> None:
    for cls in (MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver):
        observer = cls(averaging_constant=1.0)
        for batch in ([[1.0, -3.0]], [[0.5, 2.0]]):
            observer(torch.tensor(batch))
        assert (observer.min_val.item(), observer.max_val.item()) == (0.5, 2.0)


def test_a_negative_axis_counts_from_the_end() -> None:
    observer = PerChannelMinMaxObserver(ch_axis=-2)
    observer(torch.tensor([[1.0, -3.0], [0.5, 2.0]]))
    assert (observer.min_val.tolist(), observer.max_val.tolist()) == ([-3.0, 0.5], [1.0, 2.0])
    with pytest.raises(CalibrationError):
        PerChannelMinMaxObserver(ch_axis=-3)(torch.ones(2, 2))
