"""Whole models through prepare, convert and lower: the forms agree, and what can fuse has fused."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from x86_support import convert, count, sqnr

from qspec_core import GraphError, TableQuantizer, coverage, prepare_pt2e
from qspec_x86 import (
    LOWERING_KEY,
    TABLE,
    default_quantizer,
    get_default_x86_inductor_quantization_config,
    lower_eager,
    lower_portable,
    lower_pt2e_quantized_to_x86,
)


class Residual(nn.Module):
    """Every kind of glue: stride, depthwise, a sum in either order, uneven padding, pooling, cat, flatten, linears."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 16, 3, 2, bias=False), nn.BatchNorm2d(16), nn.ReLU6())
        self.depthwise = nn.Sequential(nn.Conv2d(16, 16, 3, 1, 1, groups=16, bias=False), nn.BatchNorm2d(16), nn.ReLU())
        self.project = nn.Conv2d(16, 16, 1)
        self.wide = nn.Conv2d(16, 13, 3, padding="same")
        self.hidden = nn.Linear(29 * 16, 33)
        self.head = nn.Linear(33, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(nn.functional.pad(x, (0, 1, 0, 1)))
        y = torch.relu(x + self.project(self.depthwise(x)))
        y = torch.cat([nn.functional.max_pool2d(y, 2), nn.functional.max_pool2d(torch.relu(self.wide(y)), 2)], 1)
        y = torch.relu_(self.hidden(y.flatten(1)))
        result: Tensor = self.head(nn.functional.dropout(y, 0.2, self.training))
        return result


@pytest.fixture
def example() -> Tensor:
    return torch.randn(2, 3, 16, 16)


def test_forms_agree_and_everything_fuses(example: Tensor) -> None:
    model = Residual()
    converted = convert(default_quantizer(target="any"), model, example)
    eager, portable = lower_eager(converted), lower_portable(converted)
    assert len(coverage(converted).quantized) > 0
    for lowered in (eager, portable):
        assert lowered.meta[LOWERING_KEY].declined == {}
        assert count(lowered, "aten.conv") == count(lowered, "aten.linear") == 0
    # Between the kernels of the eager form nothing is float: one quantize at the input, and no dequantize at all.
    assert count(eager, "quantize_per_tensor") == 1
    assert count(eager, "qconv_pointwise") + count(eager, "qconv_sum") == 6
    assert count(eager, "qconv_sum") == 1
    with torch.no_grad():
        # Sums of equal values in another order: a value in the middle of two steps may go either way.
        assert sqnr(converted(example), eager(example)) > 40
        assert sqnr(portable(example), eager(example)) > 40
        assert sqnr(model(example), eager(example)) > 20


@pytest.mark.parametrize("reduce_range", [False, True])
def test_the_known_configuration_lowered_under_the_known_name(example: Tensor, reduce_range: bool) -> None:
    config = get_default_x86_inductor_quantization_config(reduce_range=reduce_range)
    model = Residual()
    converted = convert(TableQuantizer(TABLE, target="vnni").set_global(config), model, example)
    lowered = lower_pt2e_quantized_to_x86(converted, (example,))
    # Weights of 8 bits against inputs of 0..127 fit 16 bits; against 0..255 they are brought to 7 bits, and that is
    # said.
    assert bool(lowered.meta[LOWERING_KEY].narrowed) is not reduce_range
    with torch.no_grad():
        assert sqnr(model(example), lowered(example)) > 18
        assert sqnr(converted(example), lowered(example)) > (40 if reduce_range else 25)


def test_lowering_leaves_its_input_alone(example: Tensor) -> None:
    converted = convert(default_quantizer(), Residual(), example)
    code, state = converted.code, {name: value.clone() for name, value in converted.state_dict().items()}
    with torch.no_grad():
        before = converted(example)
        lower_eager(converted, "any")
        lower_portable(converted, "vnni")
        assert converted.code == code
        assert all(torch.equal(state[name], value) for name, value in converted.state_dict().items())
        torch.testing.assert_close(converted(example), before, rtol=0, atol=0)


def test_a_graph_made_on_another_device_runs_on_the_cpu() -> None:
    class Placed(nn.Module):
        """A linear layer over inputs to which their places are added."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            result: Tensor = self.layer(x + torch.arange(4, device=x.device))
            return result

    x = torch.randn(2, 4)
    converted = convert(default_quantizer(), Placed(), x)
    expected = converted(x)
    (places,) = converted.graph.find_nodes(op="call_function", target=torch.ops.aten.arange.default)
    places.kwargs = {**places.kwargs, "device": torch.device("meta")}
    places.meta["val"] = places.meta["val"].to("meta")
    with torch.no_grad():
        assert sqnr(expected, lower_eager(converted)(x)) > 100


def test_the_eager_form_holds_no_plain_weights(example: Tensor) -> None:
    lowered = lower_eager(convert(default_quantizer(), Residual(), example))
    assert not any(value.dtype is torch.int8 for value in lowered.state_dict().values())
    assert not any(value.numel() > 64 for value in lowered.state_dict().values())


def test_a_portable_graph_survives_export_and_reload(tmp_path: Any, example: Tensor) -> None:
    converted = convert(default_quantizer(), Residual(), example)
    torch.export.save(torch.export.export(converted, (example,)), tmp_path / "converted.pt2")
    again = torch.export.load(tmp_path / "converted.pt2").module()
    assert isinstance(again, GraphModule)
    with torch.no_grad():
        torch.testing.assert_close(lower_eager(again)(example), lower_eager(converted)(example), rtol=0, atol=0)


@pytest.mark.parametrize("name", ["conv2d", "linear"])
def test_removing_a_row_shows_in_coverage(example: Tensor, name: str) -> None:
    fewer = replace(TABLE, rows=tuple(row for row in TABLE.rows if row.name != name))
    config = get_default_x86_inductor_quantization_config()
    whole = coverage(convert(TableQuantizer(TABLE).set_global(config), Residual(), example))
    less = coverage(convert(TableQuantizer(fewer).set_global(config), Residual(), example))
    assert len(less.quantized) < len(whole.quantized)
    assert "no row" in less.summary()
    assert "no row" not in whole.summary()


class Standalone(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.linear = nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(nn.functional.adaptive_avg_pool2d(self.conv(x), 1).flatten(1))
        return result


def test_float_only_operators_say_why(example: Tensor) -> None:
    found = coverage(convert(default_quantizer(), Standalone(), example)).summary()
    assert "adaptive_avg_pool2d" in found
    assert "no integer kernel" in found


@pytest.mark.parametrize("lower", [lower_eager, lower_portable])
def test_what_is_not_converted_is_refused(lower: Callable[..., GraphModule], example: Tensor) -> None:
    model = Standalone().eval()
    exported = torch.export.export(model, (example,)).module()
    assert isinstance(exported, GraphModule)
    prepared = prepare_pt2e(exported, default_quantizer())
    for module, problem in ((model, "takes an exported graph"), (exported, "not quantized"), (prepared, "are live")):
        with pytest.raises(GraphError, match=problem):
            lower(module)
