"""Bias correction: layers with rounded weights get the mean output of the float layers, channel by channel."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_support import DYNAMIC, WEIGHT_ONLY, Frozen, Net, aten, calls, export, layer, quantizer, settled, sqnr
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import TableQuantizer, convert_pt2e, prepare_pt2e
from qspec_core._bias_correction import InputMeans, correct_biases
from qspec_core.patterns import Outputs, PatternTable

LAYERS = PatternTable(
    tuple(
        layer(name, target)
        for name, target in (
            ("linear", aten.linear.default),
            ("conv1d", aten.conv1d.default),
            ("conv2d", aten.conv2d.default),
            ("conv3d", aten.conv3d.default),
        )
    ),
    Outputs.DEMAND,
    {},
)


def both(model: nn.Module, *batches: Tensor, chosen: TableQuantizer | None = None) -> tuple[GraphModule, GraphModule]:
    """Converted module, plain and with corrected biases. Only weights are in integers, unless a quantizer is given."""
    exported = export(model, batches[0])
    made = TableQuantizer(LAYERS).set_global(WEIGHT_ONLY) if chosen is None else chosen
    prepared = prepare_pt2e(exported, made)
    means = InputMeans(prepared)
    for batch in batches:
        means.module(batch)
    converted = convert_pt2e(prepared)
    return converted, correct_biases(converted, means)


def channel_means(y: Tensor, axis: int) -> Tensor:
    return y.detach().movedim(axis, -1).flatten(0, -2).mean(0)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("make", "shape", "axis"),
    [
        (lambda bias: nn.Linear(24, 5, bias=bias), (64, 24), -1),
        (lambda bias: nn.Linear(24, 5, bias=bias), (4, 7, 24), -1),
        (lambda bias: nn.Conv1d(24, 6, 1, bias=bias), (4, 24, 9), 1),
        (lambda bias: nn.Conv2d(24, 6, 1, bias=bias), (4, 24, 9, 9), 1),
        (lambda bias: nn.Conv2d(24, 6, 1, groups=3, bias=bias), (4, 24, 9, 9), 1),
        (lambda bias: nn.Conv2d(24, 24, 1, groups=24, bias=bias), (4, 24, 9, 9), 1),
        (lambda bias: nn.Conv2d(24, 6, 1, bias=bias), (24, 9, 9), 0),
        (lambda bias: nn.Conv3d(8, 6, 1, bias=bias), (4, 8, 3, 3, 3), 1),
    ],
)
def test_mean_output_is_that_of_the_float_layer(
    make: Callable[[bool], nn.Module], shape: tuple[int, ...], axis: int, bias: bool
) -> None:
    model = make(bias)
    first, second = torch.rand(shape) + 1, torch.rand(shape) + 3
    plain, corrected = both(model, first, second)
    wanted, before, after = (
        channel_means(torch.cat([run(first), run(second)], axis - 1), axis) for run in (model, plain, corrected)
    )
    assert (before - wanted).abs().max() > 1e-4
    torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (2, 1), (4, 2)])
def test_windows_of_a_flat_image_see_its_mean(groups: int, stride: int) -> None:
    """Where each channel is one value, every window sees the mean: the correction is exact without a padded border."""
    model = nn.Conv2d(8, 12, 3, stride, groups=groups)
    x = torch.rand(2, 8, 1, 1).mean(0, keepdim=True).expand(2, 8, 9, 9).contiguous()
    _, corrected = both(model, x)
    torch.testing.assert_close(corrected(x), model(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kernel", [2, 4])
def test_transposed_convolution_counts_the_taps_that_reach_an_output(kernel: int, groups: int) -> None:
    """With kernels of whole strides each inner output gets the same number of taps, but not the same ones."""
    model = nn.ConvTranspose2d(8, 6, kernel, 2, kernel // 2 - 1, groups=groups)
    x = torch.rand(1, 8, 1, 1).expand(1, 8, 16, 16).contiguous()
    table = PatternTable((layer("conv_transpose2d", aten.conv_transpose2d.input),), Outputs.DEMAND, {})
    plain, corrected = both(model, x, chosen=TableQuantizer(table).set_global(WEIGHT_ONLY))
    inner = (slice(None), slice(None), slice(4, -4), slice(4, -4))
    wanted, before, after = (channel_means(run(x)[inner], 1) for run in (model, plain, corrected))
    assert (before - wanted).abs().max() > 1e-4
    torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-5)


def test_network_comes_closer_to_float() -> None:
    torch.manual_seed(3)
    blocks = [
        part
        for _ in range(4)
        for part in (nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.BatchNorm2d(16), nn.ReLU6(), nn.Conv2d(16, 16, 1))
    ]
    model = settled(nn.Sequential(*blocks))
    batches = [torch.rand(4, 16, 12, 12) for _ in range(4)]
    plain, corrected = both(model, *batches, chosen=quantizer())
    x = torch.rand(4, 16, 12, 12)
    with torch.no_grad():
        assert sqnr(model(x), corrected(x)) > sqnr(model(x), plain(x)) + 1


def test_modules_given_stay_as_they_are_and_share_what_is_not_corrected() -> None:
    linear = nn.Linear(8, 4)
    exported = export(linear, torch.rand(4, 8))
    state = Frozen(exported)
    prepared = prepare_pt2e(exported, quantizer())
    frozen = Frozen(prepared)
    means = InputMeans(prepared)
    frozen.check()
    means.module(torch.rand(4, 8))
    converted = convert_pt2e(prepared)
    frozen = Frozen(converted)
    corrected = correct_biases(converted, means)
    frozen.check()
    state.check()
    weights = [dict(module.named_buffers())["_frozen_param0"] for module in (converted, corrected)]
    assert weights[0].data_ptr() == weights[1].data_ptr()
    assert [name for name, _ in corrected.named_parameters()] == ["_corrected_bias_0"]


def test_layers_that_share_a_bias_or_an_observer_are_corrected_apart() -> None:
    """Each has a mean input of its own, though one observer serves both inputs."""
    parts = {"weight": nn.Parameter(torch.randn(4, 8)), "bias": nn.Parameter(torch.randn(4))}

    def forward(m: Any, x: Tensor, y: Tensor) -> Tensor:
        joined = torch.cat([x, y])
        a, b = nn.functional.linear(x, m.weight, m.bias), nn.functional.linear(y, m.weight, m.bias)
        return torch.cat([a, b, nn.functional.linear(joined, m.weight)])

    model = Net(forward, **parts)
    x, y = torch.rand(16, 8), torch.rand(16, 8) + 4
    prepared = prepare_pt2e(export(model, x, y), TableQuantizer(LAYERS).set_global(WEIGHT_ONLY))
    means = InputMeans(prepared)
    means.module(x, y)
    corrected = correct_biases(convert_pt2e(prepared), means)
    wanted, found = model(x, y), corrected(x, y)
    for part in (slice(0, 16), slice(16, 32), slice(32, 64)):
        torch.testing.assert_close(found[part].mean(0), wanted[part].mean(0), rtol=1e-5, atol=1e-5)


def test_layer_without_data_keeps_its_bias() -> None:
    linear = nn.Linear(8, 4)
    prepared = prepare_pt2e(export(linear, torch.rand(4, 8)), quantizer(DYNAMIC))
    means = InputMeans(prepared)
    converted = convert_pt2e(prepared)
    assert means.shifts(converted) == {}
    assert torch.equal(dict(correct_biases(converted, means).named_parameters())["bias"], linear.bias)


def test_empty_batch_counts_for_nothing() -> None:
    linear = nn.Linear(8, 4)
    batch = torch.export.Dim("batch", min=0)
    exported = export(linear, torch.rand(2, 8), dynamic_shapes=({0: batch},))
    prepared = prepare_pt2e(exported, TableQuantizer(LAYERS).set_global(WEIGHT_ONLY))
    means = InputMeans(prepared)
    x = torch.rand(16, 8)
    for rows in (x, x[:0]):
        means.module(rows)
    corrected = correct_biases(convert_pt2e(prepared), means)
    torch.testing.assert_close(corrected(x).mean(0), linear(x).mean(0), rtol=1e-5, atol=1e-5)


def test_bias_that_the_graph_computes_stays() -> None:
    model = Net(lambda m, x: nn.functional.linear(x, m.weight, x.sum() * m.scale), scale=torch.ones(4))
    model.weight = nn.Parameter(torch.randn(4, 8))
    _, corrected = both(model, torch.rand(4, 8))
    (call,) = calls(corrected, aten.linear.default)
    assert str(call.args[2]) == "mul"


@pytest.mark.parametrize("bias", [True, False])
def test_layer_in_a_body_is_corrected(bias: bool) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        with torch.no_grad():
            y: Tensor = m.inner(x)
        return y * 2

    model = Net(forward, inner=nn.Linear(8, 4, bias=bias))
    x = torch.rand(32, 8) + 1
    plain, corrected = both(model, x)
    wanted, before, after = (channel_means(run(x), -1) for run in (model, plain, corrected))
    assert (before - wanted).abs().max() > 1e-4
    torch.testing.assert_close(after, wanted, rtol=1e-5, atol=1e-6)
    assert torch.export.export(corrected, (x,)).module()(x).shape == (32, 4)  # its constants are operands of the body


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch.export of nn.LSTM
@pytest.mark.filterwarnings("ignore:RNN module weights")
def test_every_step_of_a_recurrent_layer_counts() -> None:
    torch.manual_seed(0)
    model = Net(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(8, 12))
    x = torch.rand(40, 6, 8) + 1
    plain, corrected = both(model, x)
    wanted, before, after = (run(x).detach() for run in (model, plain, corrected))  # with gradients, as in calibration
    assert sqnr(wanted, after) > sqnr(wanted, before) + 3
