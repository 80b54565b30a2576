"""`quantize_aware`: training a model, finishing it, and training as people do it."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_support import toy_backend
from qat_support import qat_quantizer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qspec_core import BackendError, CalibrationError, QATSchedule, Training, quantize_aware
from qspec_core.backend import Backend


def backend(**fields: Any) -> Backend:
    return toy_backend(training_quantizer=lambda **_: qat_quantizer(), **fields)


def model() -> nn.Sequential:
    torch.manual_seed(0)
    convolution = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.1))
    return nn.Sequential(convolution, nn.Flatten(), nn.Linear(144, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))


def images(seed: int = 0, count: int = 8) -> Tensor:
    return torch.randn(count, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.ReLU(), nn.Linear(4, 2))


def started(net: nn.Module | None = None, **options: Any) -> Training:
    return quantize_aware(model() if net is None else net, (images(),), backend=backend(), **options)


def steps(module: Callable[[Tensor], Tensor], optimizer: torch.optim.Optimizer, numbers: range) -> list[float]:
    """Train on the batches of these numbers; each has random values of its own."""
    losses = []
    for number in numbers:
        torch.manual_seed(number)
        loss = (module(images(number)) - 1).square().mean()
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        optimizer.step()
        losses.append(loss.item())
    return losses


def adam(module: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.Adam(module.parameters(), 0.01)


def test_one_call_at_each_end() -> None:
    net = model()
    weight = net.get_parameter("0.0.weight")
    before = weight.detach().clone()
    training = started(net)
    assert training.module.training
    losses = steps(training.module, adam(training.module), range(10))
    assert losses[-1] < losses[0]
    assert not torch.equal(weight, before)
    training.module.eval()
    with torch.no_grad():
        result = training.finish()
        expected = training.module(images())
        torch.testing.assert_close(
            result.converted(images()), expected, rtol=0, atol=0.03 * expected.abs().max().item()
        )
    assert len(result.coverage.quantized_layers) == len(training.coverage.quantized_layers) == 3
    assert result.backend.name == training.backend.name
    assert net.training


def test_a_batch_of_another_size() -> None:
    batch = torch.export.Dim("batch", min=2, max=64)
    training = quantize_aware(model(), (images(),), backend=backend(), dynamic_shapes=({0: batch},))
    training.module(images(count=5)).sum().backward()
    assert training.finish().converted(images(count=3)).shape == (3, 2)


def test_a_module_that_never_ran_cannot_be_finished() -> None:
    with pytest.raises(CalibrationError) as caught:
        started().finish()
    assert "train training.module" in caught.value.remedy


def test_a_backend_without_a_quantizer_for_training_is_refused() -> None:
    with pytest.raises(BackendError) as caught:
        quantize_aware(model(), (images(),), backend=toy_backend())
    assert "quantizer=" in caught.value.remedy
    given = quantize_aware(model(), (images(),), backend=toy_backend(), quantizer=qat_quantizer())
    assert given.coverage.quantized_layers


def test_resumed_training_is_bitwise_that_without_a_stop() -> None:
    whole = started()
    optimizer = adam(whole.module)
    first = steps(whole.module, optimizer, range(3))
    saved = copy.deepcopy((whole.module.state_dict(), optimizer.state_dict()))
    rest = steps(whole.module, optimizer, range(3, 6))
    again = started()
    again.module.load_state_dict(saved[0])
    second = adam(again.module)
    second.load_state_dict(saved[1])
    assert steps(again.module, second, range(3, 6)) == rest
    assert rest != first
    for name, value in whole.module.state_dict().items():
        assert torch.equal(again.module.state_dict()[name], value), name


def test_copies_switch_and_train_apart() -> None:
    training = started()
    steps(training.module, adam(training.module), range(2))
    copied = copy.deepcopy(training.module)
    copied.eval()
    copied.apply(_stop_observing)
    assert training.module.training
    assert torch.equal(copied(images()), copied(images()))
    before = training.module.get_parameter("2.weight").detach().clone()
    copied.train()
    assert copied.training
    steps(copied, adam(copied), range(2))
    assert torch.equal(training.module.get_parameter("2.weight"), before)


def test_an_average_of_weights_can_be_converted() -> None:
    training = started()
    average = torch.optim.swa_utils.AveragedModel(training.module, avg_fn=_half)
    optimizer = adam(training.module)
    for number in range(4):
        steps(training.module, optimizer, range(number, number + 1))
        average.update_parameters(training.module)
    average.module.eval()
    averaged = average.module(images())
    assert averaged.isfinite().all()
    assert not torch.equal(averaged, training.module.eval()(images()))


def test_gradients_are_accumulated_and_clipped() -> None:
    gradients = []
    for parts in (1, 2):
        training = started(layers())
        training.module(images())  # the range of the activations is that of the whole batch in both runs
        training.module.apply(_stop_observing)
        for part in images().chunk(parts):
            torch.autograd.backward(_padded(training.module, part).square().sum())
        norm = nn.utils.clip_grad_norm_(training.module.parameters(), 0.1)
        assert norm > 0.1
        gradients.append([p.grad for p in training.module.parameters() if p.grad is not None])
    for whole, accumulated in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, accumulated, rtol=1e-4, atol=1e-6)


def _half(averaged: Tensor, newest: Tensor, _: Tensor | int) -> Tensor:
    return (averaged + newest) / 2


def _stop_observing(part: nn.Module) -> None:
    disable = getattr(part, "disable_observer", None)
    if callable(disable):
        disable()


def _padded(module: nn.Module, part: Tensor) -> Tensor:
    """The results of a part of the batch that the module was exported with."""
    padded = torch.cat([part, images()[part.shape[0] :]])
    result: Tensor = module(padded)[: part.shape[0]]
    return result


def test_gradient_checkpointing_gives_the_same_gradients() -> None:
    gradients = []
    for call in (lambda module, x: module(x), lambda module, x: checkpoint(module, x, use_reentrant=False)):
        training = started(layers())
        training.module(images())
        training.module.apply(_stop_observing)
        apply: Callable[[nn.Module, Tensor], Tensor] = call
        torch.autograd.backward(apply(training.module, images()).square().sum())
        gradients.append([p.grad for p in training.module.parameters()])
    for plain, recomputed in zip(*gradients, strict=True):
        torch.testing.assert_close(plain, recomputed, rtol=0, atol=0)


def test_autocast_to_bfloat16_trains_and_converts() -> None:
    training = started()
    optimizer = adam(training.module)
    for number in range(4):
        with torch.autocast("cpu", torch.bfloat16):
            found = training.module(images(number))
        assert found.isfinite().all()
        loss = (found.float() - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    training.module.eval()
    expected = training.module(images())
    with torch.no_grad():
        converted = training.finish().converted(images())
    torch.testing.assert_close(converted, expected.detach(), rtol=0, atol=0.03 * expected.abs().max().item())


def test_a_schedule_resumes_with_the_training() -> None:
    training = started()
    schedule = QATSchedule(training.module, quantize_at=1, freeze_batch_norms_at=2, freeze_observers_at=3)
    optimizer = adam(training.module)
    for number in range(4):
        steps(training.module, optimizer, range(number, number + 1))
        schedule.step()
    again = started()
    resumed = QATSchedule(again.module, quantize_at=1, freeze_batch_norms_at=2, freeze_observers_at=3)
    resumed.load_state_dict(schedule.state_dict())
    again.module.load_state_dict(training.module.state_dict())
    second = adam(again.module)
    second.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert steps(again.module, second, range(4, 6)) == steps(training.module, optimizer, range(4, 6))


def test_a_compiled_training_step_is_one_graph_with_the_same_losses() -> None:
    torch.compiler.reset()
    eager, traced = started(), started()
    eager.module.load_state_dict(copy.deepcopy(traced.module.state_dict()))
    for training in (eager, traced):
        for node in training.module.graph.find_nodes(op="call_function", target=torch.ops.aten.dropout.default):
            node.update_arg(1, 0.0)  # compiled code draws other random numbers
        training.module.recompile()
    compiled = torch.compile(traced.module, fullgraph=True, backend="aot_eager")
    expected = steps(eager.module, adam(eager.module), range(4))
    assert steps(compiled, adam(traced.module), range(4)) == pytest.approx(expected, rel=1e-5)
