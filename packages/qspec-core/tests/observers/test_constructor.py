"""Constructors with arguments filled in, and how a spec calls qspec's and third-party constructors."""

import copy
import functools
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qspec_core import QuantizationSpec, SpecError
from qspec_core.fake_quantize import FakeQuantize, FixedQParamsFakeQuantize
from qspec_core.observers import (
    FixedQParamsObserver,
    HistogramObserver,
    MinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PartialWrapper,
    PerChannelMinMaxObserver,
    PlaceholderObserver,
    RecordingObserver,
    accepted_keywords,
    build_observer,
)


def cpu() -> dict[str, str]:
    return {"device": "cpu"}


def test_equal_arguments_make_equal_constructors() -> None:
    first = HistogramObserver.with_args(eps=2**-12, dtype=torch.uint8)
    second = HistogramObserver.with_args(dtype=torch.uint8).with_args(eps=2**-12)
    assert first == second
    assert hash(first) == hash(second)
    assert first != HistogramObserver.with_args(eps=2**-11, dtype=torch.uint8)
    assert first != MinMaxObserver.with_args(eps=2**-12, dtype=torch.uint8)
    assert first != HistogramObserver
    assert first.with_callable_args(factory_kwargs=cpu) != first
    nested = FakeQuantize.with_args(observer=first)
    assert nested == FakeQuantize.with_args(observer=second)
    assert QuantizationSpec(torch.uint8, first) == QuantizationSpec(torch.uint8, second)
    assert hash(MinMaxObserver.with_args(factory_kwargs={})) is not None


@pytest.mark.parametrize("duplicate", [copy.copy, copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_are_equal(duplicate: Any) -> None:
    original = HistogramObserver.with_args(bins=16).with_callable_args(factory_kwargs=cpu)
    other = duplicate(original)
    assert other == original
    assert other().bins == 16


def test_repr_reads_as_it_was_written() -> None:
    constructor = MinMaxObserver.with_args(dtype=torch.int8, eps=0.5)
    assert repr(constructor) == "MinMaxObserver.with_args(dtype=torch.int8, eps=0.5)"
    late = MinMaxObserver.with_callable_args(factory_kwargs=cpu)
    assert repr(late) == "MinMaxObserver.with_args().with_callable_args(factory_kwargs=cpu)"


def test_callable_arguments_are_computed_at_each_construction() -> None:
    calls: list[int] = []

    def constant() -> float:
        calls.append(1)
        return 0.25

    constructor: Any = MinMaxObserver.with_callable_args(eps=constant)
    assert [constructor().eps.item(), constructor().eps.item(), constructor(eps=0.5).eps.item()] == [0.25, 0.25, 0.5]
    assert len(calls) == 2


def spec_of(constructor: Any, **kwargs: Any) -> QuantizationSpec:
    defaults: dict[str, Any] = {"dtype": torch.int8, "qscheme": torch.per_tensor_symmetric}
    return QuantizationSpec(observer_or_fake_quant_ctr=constructor, **{**defaults, **kwargs})


def test_an_observer_gets_the_fields_of_its_spec() -> None:
    spec = spec_of(MinMaxObserver.with_args(eps=2**-12), quant_min=-127, quant_max=127)
    observer: Any = build_observer(spec)
    assert (observer.dtype, observer.quant_min, observer.quant_max) == (torch.int8, -127, 127)
    assert observer.qscheme == torch.per_tensor_symmetric
    assert observer.eps.item() == 2**-12
    overridden: Any = build_observer(spec, quant_min=-7, quant_max=7)
    assert overridden.quant_max == 7
    assert build_observer(spec) is not observer


def test_fields_of_none_do_not_replace_filled_in_arguments() -> None:
    observer: Any = build_observer(spec_of(MinMaxObserver.with_args(quant_min=-8, quant_max=7)))
    assert (observer.quant_min, observer.quant_max) == (-8, 7)


def test_the_channel_axis_reaches_observers_that_take_it() -> None:
    per_channel = {"qscheme": torch.per_channel_symmetric, "ch_axis": 1}
    observer: Any = build_observer(spec_of(PerChannelMinMaxObserver, **per_channel))
    assert observer.ch_axis == 1
    fake: Any = build_observer(
        spec_of(FakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver), **per_channel)
    )
    assert fake.ch_axis == fake.activation_post_process.ch_axis == 1
    assert isinstance(build_observer(spec_of(MinMaxObserver, ch_axis=1)), MinMaxObserver)


@pytest.mark.parametrize("constructor", [PlaceholderObserver, RecordingObserver])
def test_every_observer_takes_a_spec(constructor: type[nn.Module]) -> None:
    observer: Any = build_observer(spec_of(constructor, ch_axis=0))
    assert observer.dtype == torch.int8
    fixed = FixedQParamsFakeQuantize.with_args(observer=FixedQParamsObserver.with_args(scale=0.5, zero_point=1))
    built: Any = build_observer(spec_of(fixed, dtype=torch.quint8, qscheme=torch.per_tensor_affine))
    assert built.scale.item() == 0.5


class Foreign(nn.Module):
    """A third-party observer without PerChannel in its name and without dynamic quantization."""

    def __init__(self, dtype: torch.dtype, ch_axis: int = 5) -> None:
        super().__init__()
        self.arguments = (dtype, ch_axis)

    def forward(self, x: Tensor) -> Tensor:
        return x


class ForeignFake(Foreign):
    def __init__(self, observer: Any = Foreign, **observer_kwargs: Any) -> None:
        super().__init__(torch.int8)
        self.inner = observer(**observer_kwargs)


class ForeignPartial:
    """As in torchao: a `functools.partial` under `p`, called with any arguments."""

    def __init__(self, p: Any) -> None:
        self.p = p

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.p(*args, **kwargs)


@pytest.mark.parametrize(
    "constructor",
    [Foreign, functools.partial(Foreign, ch_axis=3), ForeignPartial(functools.partial(Foreign, ch_axis=3))],
)
def test_foreign_constructors_get_the_fields_in_their_signature(constructor: Any) -> None:
    observer: Any = build_observer(spec_of(constructor, qscheme=torch.per_channel_affine, ch_axis=2))
    assert observer.arguments == (torch.int8, 2)
    filled = build_observer(spec_of(constructor))
    assert filled.arguments == (torch.int8, 5 if constructor is Foreign else 3)


def test_a_foreign_fake_quantize_also_takes_the_keywords_of_its_observer() -> None:
    assert accepted_keywords(ForeignFake) == frozenset({"observer", "dtype", "ch_axis"})
    built: Any = build_observer(spec_of(ForeignFake))
    assert built.inner.arguments == (torch.int8, 5)
    of_ours = accepted_keywords(functools.partial(ForeignFake, observer=MinMaxObserver))
    assert of_ours is not None
    assert {"observer", "qscheme", "dtype"} <= of_ours
    assert "ch_axis" not in of_ours


class ForeignChild(Foreign):
    """Passes unknown keywords to its base, as Qualcomm's observers do."""

    def __init__(self, steps: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps = steps


class ForeignRoot(nn.Module):
    """Stores all keywords."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__()
        self.kwargs = kwargs


def test_a_class_that_passes_keywords_on_also_takes_those_of_its_base() -> None:
    assert accepted_keywords(ForeignChild) == frozenset({"steps", "dtype", "ch_axis"})
    built: Any = build_observer(spec_of(ForeignChild, qscheme=torch.per_channel_affine, ch_axis=2))
    assert built.arguments == (torch.int8, 2)
    assert accepted_keywords(ForeignRoot) is None
    kept: Any = build_observer(spec_of(ForeignRoot, qscheme=torch.per_channel_affine, ch_axis=2))
    assert kept.kwargs["ch_axis"] == 2


def test_a_function_may_be_the_constructor() -> None:
    def constructor(**kwargs: Any) -> nn.Module:
        return Foreign(kwargs["dtype"])

    assert isinstance(build_observer(spec_of(constructor)), Foreign)
    assert accepted_keywords(3) == frozenset()
    assert accepted_keywords(dict.fromkeys) is None or isinstance(accepted_keywords(dict.fromkeys), frozenset)


def test_a_result_that_is_not_a_module_is_refused() -> None:
    with pytest.raises(SpecError) as error:
        build_observer(spec_of(dict))
    assert "module" in error.value.problem


def test_the_wrapper_has_its_pytorch_name() -> None:
    assert isinstance(MinMaxObserver.with_args(), PartialWrapper)
