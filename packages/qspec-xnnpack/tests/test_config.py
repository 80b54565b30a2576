"""Configurations: their form, and errors for those without kernel."""

import pytest
import torch

from qspec_core import SpecError
from qspec_core.observers import ObserverBase, build_observer
from qspec_xnnpack import get_symmetric_quantization_config


@pytest.mark.parametrize("is_per_channel", [False, True])
def test_configuration_has_the_kernels_form(is_per_channel: bool) -> None:
    config = get_symmetric_quantization_config(is_per_channel=is_per_channel)
    activation, weight = config.input_activation, config.weight
    assert activation is not None
    assert weight is not None
    assert (activation.dtype, activation.range, activation.qscheme) == (
        torch.int8,
        (-128, 127),
        torch.per_tensor_affine,
    )
    assert (weight.dtype, weight.range) == (torch.int8, (-127, 127))
    assert weight.qscheme is (torch.per_channel_symmetric if is_per_channel else torch.per_tensor_symmetric)
    assert weight.ch_axis == (0 if is_per_channel else None)
    assert config.output_activation == activation
    assert config.bias is None
    assert get_symmetric_quantization_config(is_per_channel=is_per_channel) is config


def test_dynamic_configuration_leaves_outputs_in_float() -> None:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True)
    assert config.input_activation is not None
    assert config.input_activation.is_dynamic
    assert config.output_activation is None


def test_a_static_observer_knows_the_spread_of_its_values() -> None:
    torch.manual_seed(0)
    batches = [torch.randn(300) * 3 + 7, torch.rand(20, 5) - 40, torch.randn(1)]
    spec = get_symmetric_quantization_config().input_activation
    assert spec is not None
    observer = build_observer(spec)
    assert isinstance(observer, ObserverBase)
    assert observer.spread is None
    for batch in batches:
        observer(batch)
    whole = torch.cat([batch.flatten() for batch in batches])
    assert observer.spread == pytest.approx(float(whole.std(correction=0)), rel=1e-5)


@pytest.mark.parametrize(
    ("arguments", "found"),
    [
        ({"learnable": True}, "learnable=True, is_qat=False, group_size=None"),
        ({"act_qmin": 5, "act_qmax": 5}, None),
        ({"weight_qmin": -200}, None),
        ({"is_dynamic": True, "is_per_channel": True, "act_qmin": 0}, "dynamic, (0, 127)"),
        ({"is_per_channel": True, "weight_qmin": -8, "weight_qmax": 7}, "4 bits, static"),
        ({"is_dynamic": True, "group_size": 32}, "groups of 32, (-127, 127)"),
        ({"is_dynamic": True, "group_size": 24, "weight_qmin": -8, "weight_qmax": 7}, "groups of 24, (-8, 7)"),
    ],
)
def test_bad_configuration_raises(arguments: dict[str, int], found: str | None) -> None:
    with pytest.raises(SpecError) as caught:
        get_symmetric_quantization_config(**arguments)
    assert found is None or caught.value.found == found
    assert caught.value.remedy
