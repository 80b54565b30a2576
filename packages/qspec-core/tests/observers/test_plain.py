"""Observers that find no range, ready-made constructors, and state helpers."""

from typing import Any

import pytest
import torch
from torch import nn

import qspec_core.observers as observers
from qspec_core import CalibrationError, SpecError
from qspec_core.observers import (
    DerivedObserverOrFakeQuantize,
    FixedQParamsObserver,
    MinMaxObserver,
    NoopObserver,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    RecordingObserver,
    ReuseInputObserver,
    get_observer_state_dict,
    load_observer_state_dict,
)


def test_fixed_parameters_are_returned() -> None:
    observer = FixedQParamsObserver(scale=1 / 256, zero_point=3)
    x = torch.randn(4)
    assert observer(x) is x
    scale, zero_point = observer.calculate_qparams()
    assert (scale.tolist(), zero_point.tolist()) == ([1 / 256], [3])
    assert (scale.dtype, zero_point.dtype) == (torch.float32, torch.int64)
    assert observer.has_observed
    assert FixedQParamsObserver(0.5, -100, dtype=torch.int8).quant_min == -128


@pytest.mark.parametrize(
    "kwargs",
    [
        {"scale": 0.0, "zero_point": 0},
        {"scale": float("nan"), "zero_point": 0},
        {"scale": float("inf"), "zero_point": 0},
        {"scale": 1.0, "zero_point": 256},
        {"scale": 1.0, "zero_point": 0, "is_dynamic": True},
        {"scale": 1.0, "zero_point": 0, "qscheme": torch.per_channel_affine},
    ],
)
def test_impossible_fixed_parameters_are_refused(kwargs: dict[str, Any]) -> None:
    with pytest.raises(SpecError):
        FixedQParamsObserver(**kwargs)


@pytest.mark.parametrize("cls", [PlaceholderObserver, NoopObserver, RecordingObserver, ReuseInputObserver])
def test_observers_without_parameters_raise(cls: Any) -> None:
    observer = cls()
    x = torch.randn(3)
    assert observer(x) is x
    assert observer.has_observed
    assert not observer.is_dynamic
    with pytest.raises(CalibrationError) as error:
        observer.calculate_qparams()
    assert cls.__name__ in error.value.problem
    with pytest.raises(TypeError, match="nonsense"):
        cls(nonsense=1)


def test_placeholder_keeps_its_arguments() -> None:
    observer = PlaceholderObserver(torch.int8, quant_min=-8, quant_max=7, eps=2**-12, is_dynamic=True)
    assert (observer.dtype, observer.quant_min, observer.quant_max) == (torch.int8, -8, 7)
    assert (observer.eps, observer.is_dynamic, observer.qscheme) == (2**-12, True, torch.per_tensor_affine)
    assert PlaceholderObserver().eps == torch.finfo(torch.float32).eps
    assert repr(observer) == "PlaceholderObserver(dtype=torch.int8, is_dynamic=True)"


def test_recorder_keeps_copies() -> None:
    observer: Any = RecordingObserver()
    assert not observer.has_observed
    x = torch.ones(2)
    observer(x)
    x.mul_(2)
    observer(x)
    assert [value.tolist() for value in observer.get_tensor_value()] == [[1.0, 1.0], [2.0, 2.0]]


def product(sources: Any) -> tuple[torch.Tensor, torch.Tensor]:
    scale = sources[0].calculate_qparams()[0] * sources[1].calculate_qparams()[0]
    return scale, torch.zeros(scale.shape, dtype=torch.int64)


def test_derived_parameters_come_from_the_function() -> None:
    activation, weight = MinMaxObserver(), PerChannelMinMaxObserver(qscheme=torch.per_channel_symmetric)
    derived: Any = DerivedObserverOrFakeQuantize(
        torch.int32, [activation, weight], product, qscheme=torch.per_channel_symmetric, ch_axis=0
    )
    assert not derived.has_observed
    activation(torch.tensor([0.0, 255.0]))
    weight(torch.tensor([[255.0], [-51.0]]))
    assert derived.has_observed
    torch.testing.assert_close(derived.calculate_qparams()[0], torch.tensor([2.0, 0.4]))
    assert (derived.quant_min, derived.quant_max, derived.ch_axis) == (-(2**31), 2**31 - 1, 0)
    assert not derived.state_dict()  # that of its sources is theirs
    x = torch.ones(1)
    assert derived(x) is x
    assert DerivedObserverOrFakeQuantize(torch.int32, [], product).qscheme == torch.per_tensor_affine


QPARAMS = {  # name: dtype, quant_min, quant_max, eps
    "default_observer": (torch.quint8, 0, 127, 2**-23),
    "default_histogram_observer": (torch.quint8, 0, 127, 2**-23),
    "default_weight_observer": (torch.qint8, -128, 127, 2**-23),
    "weight_observer_range_neg_127_to_127": (torch.qint8, -127, 127, 2**-12),
    "default_per_channel_weight_observer": (torch.qint8, -128, 127, 2**-23),
    "per_channel_weight_observer_range_neg_127_to_127": (torch.qint8, -127, 127, 2**-12),
    "default_float_qparams_observer": (torch.quint8, 0, 255, 2**-23),
    "default_float_qparams_observer_4bit": (torch.quint4x2, 0, 15, 2**-23),
    "default_dynamic_quant_observer": (torch.quint8, 0, 255, 2**-23),
}


@pytest.mark.parametrize("name", QPARAMS)
def test_named_constructors_have_the_ranges_of_pytorch(name: str) -> None:
    observer = getattr(observers, name)()
    assert (observer.dtype, observer.quant_min, observer.quant_max, float(observer.eps)) == QPARAMS[name]


@pytest.mark.parametrize(
    ("name", "scale", "zero_point"),
    [
        ("default_fixed_qparams_range_neg1to1_observer", 2 / 256, 128),
        ("default_symmetric_fixed_qparams_observer", 2 / 256, 128),
        ("default_fixed_qparams_range_0to1_observer", 1 / 256, 0),
        ("default_affine_fixed_qparams_observer", 1 / 256, 0),
    ],
)
def test_named_fixed_parameters(name: str, scale: float, zero_point: int) -> None:
    found = getattr(observers, name)().calculate_qparams()
    assert [value.item() for value in found] == [scale, zero_point]


def test_every_public_name_exists() -> None:
    assert sorted(observers.__all__) == list(observers.__all__)
    assert all(hasattr(observers, name) for name in observers.__all__)


class Prepared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(2, 2)
        self.activation_post_process_0 = MinMaxObserver()
        self.activation_post_process_1 = PerChannelMinMaxObserver()


def test_observer_state_is_saved_without_weights() -> None:
    source, target = Prepared(), Prepared()
    source.activation_post_process_0(torch.tensor([-1.0, 5.0]))
    source.activation_post_process_1(torch.ones(3, 2))
    state = get_observer_state_dict(source)
    assert all("activation_post_process" in name for name in state)
    weight = target.linear.weight.clone()
    load_observer_state_dict(target, state)
    assert target.activation_post_process_0.max_val.item() == 5.0
    assert target.activation_post_process_1.max_val.tolist() == [1.0, 1.0, 1.0]
    assert torch.equal(target.linear.weight, weight)
    del state["activation_post_process_0.eps"]
    with pytest.raises(CalibrationError) as error:
        load_observer_state_dict(target, state)
    assert "activation_post_process_0.eps" in str(error.value.found)
