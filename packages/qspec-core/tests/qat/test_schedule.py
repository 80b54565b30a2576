"""`QATSchedule`, and freezing batch norms."""

import copy
from typing import Any

import pytest
import torch
from qat_support import exported, qat_quantizer
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import (
    QATSchedule,
    SpecError,
    freeze_bn_stats,
    move_exported_model_to_eval,
    move_exported_model_to_train,
    prepare_qat_pt2e,
    update_bn_stats,
)


def images() -> Tensor:
    return torch.randn(4, 3, 6, 6, generator=torch.Generator().manual_seed(0))


def prepared() -> GraphModule:
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)).train()
    return prepare_qat_pt2e(exported(net, images()), qat_quantizer())


def state(module: GraphModule) -> dict[str, Tensor]:
    return copy.deepcopy(dict(module.named_buffers()))


def changed(module: GraphModule, name: str) -> bool:
    before = state(module)[name]
    module(images())
    return not torch.equal(before, module.get_buffer(name))


def test_frozen_batch_norms_keep_their_statistics_while_the_rest_trains() -> None:
    module = move_exported_model_to_train(prepared())
    assert changed(module, "1.running_mean")
    module.apply(freeze_bn_stats)
    assert not changed(module, "1.running_mean")
    assert not changed(module, "1.num_batches_tracked")
    assert not torch.equal(module(images()), module(images()))  # dropout
    move_exported_model_to_eval(module)
    move_exported_model_to_train(module)
    assert not changed(module, "1.running_mean")
    assert not changed(copy.deepcopy(module), "1.running_mean")
    module.apply(update_bn_stats)
    assert changed(module, "1.running_mean")
    module.apply(freeze_bn_stats)
    move_exported_model_to_eval(module)
    module.apply(update_bn_stats)
    assert not changed(module, "1.running_mean")


def test_switches_come_at_their_steps() -> None:
    module = move_exported_model_to_train(prepared())
    schedule = QATSchedule(module, quantize_at=1, freeze_batch_norms_at=2, freeze_observers_at=3)
    fake_quantize = module.activation_post_process_1
    assert isinstance(fake_quantize, nn.Module)
    seen = []
    for _ in range(4):
        rounds = not torch.equal(fake_quantize(images()), images())
        seen.append((rounds, changed(module, "1.running_mean"), bool(fake_quantize.observer_enabled)))
        schedule.step()
    assert seen == [(False, True, True), (True, True, True), (True, False, True), (True, False, False)]


@pytest.mark.parametrize(
    ("module", "options", "found"),
    [
        (nn.Linear(2, 2), {}, "quantize_at=0"),
        (None, {"learn_ranges_at": 3}, "learn_ranges_at=3"),
        (None, {"freeze_observers_at": -1}, "freeze_observers_at=-1"),
    ],
)
def test_what_cannot_be_switched_is_refused(module: nn.Module | None, options: dict[str, Any], found: str) -> None:
    with pytest.raises(SpecError) as caught:
        QATSchedule(prepared() if module is None else module, **options)
    assert caught.value.found == found


def test_a_model_without_batch_norms_cannot_freeze_them() -> None:
    net = nn.Sequential(nn.Linear(4, 4), nn.ReLU())
    module = prepare_qat_pt2e(exported(net, torch.ones(2, 4)), qat_quantizer())
    with pytest.raises(SpecError) as caught:
        QATSchedule(module, freeze_batch_norms_at=5)
    assert "batch norms" in str(caught.value.expected)
