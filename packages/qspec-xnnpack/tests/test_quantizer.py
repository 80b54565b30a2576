"""The quantizer: which configurations it takes, and what coverage says of operators left in float."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qspec_core as qspec
from qspec_core import BackendError, QuantizationConfig, SpecError, ops
from qspec_core.lowering import quantized_value
from qspec_core.observers import (
    AffineQuantizedMinMaxObserver,
    Granularity,
    MappingType,
    PerAxis,
    PerBlock,
    PerGroup,
    PerRow,
    PerToken,
)
from qspec_core.patterns import Flow
from qspec_xnnpack import BACKEND, XNNPACKQuantizer, get_symmetric_quantization_config
from qspec_xnnpack._rows import TABLE


class Small(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.sigmoid(F.relu6(self.conv(x)).mean((2, 3)))
        return F.linear(y, self.head.weight, self.head.bias)


def exported(model: nn.Module, x: Tensor) -> torch.fx.GraphModule:
    return torch.export.export(model.eval(), (x,)).module()


X = torch.linspace(-3, 3, 3 * 8 * 8).reshape(1, 3, 8, 8)


@pytest.mark.parametrize("role", ["input_activation", "output_activation", "weight"])
def test_unsupported_dtype_raises(role: str) -> None:
    good = get_symmetric_quantization_config()
    wide = replace(getattr(good, role), dtype=torch.int16, quant_min=-(2**15), quant_max=2**15 - 1)
    bad: QuantizationConfig = replace(good, **{role: wide})
    with pytest.raises(SpecError) as caught:
        XNNPACKQuantizer().set_module_name("conv", bad)
    assert role.replace("_", " ") in caught.value.problem
    assert "torch.int16" in str(caught.value.found)


@pytest.mark.parametrize(
    ("role", "granularity"),
    [
        ("input_activation", PerGroup(32)),
        ("input_activation", PerToken()),
        ("output_activation", PerAxis(1)),
        ("weight", PerBlock((2, 32))),
        ("weight", PerRow(0)),
    ],
    ids=str,
)
def test_unsupported_granularity_raises(role: str, granularity: Granularity) -> None:
    good = get_symmetric_quantization_config()
    scheme = {"mapping_type": MappingType.SYMMETRIC, "target_dtype": torch.int8, "granularity": granularity}
    spec = replace(getattr(good, role), observer_or_fake_quant_ctr=AffineQuantizedMinMaxObserver.with_args(**scheme))
    with pytest.raises(SpecError) as caught:
        XNNPACKQuantizer().set_global(replace(good, **{role: spec}))
    assert role.replace("_", " ") in caught.value.problem
    assert caught.value.found == granularity


def test_other_channel_axis_raises() -> None:
    good = get_symmetric_quantization_config(is_per_channel=True)
    assert good.weight is not None
    with pytest.raises(SpecError) as caught:
        XNNPACKQuantizer().set_global(replace(good, weight=replace(good.weight, ch_axis=1)))
    assert caught.value.found == "ch_axis=1"


def test_weights_alone_raise() -> None:
    good = get_symmetric_quantization_config(is_per_channel=True)
    with pytest.raises(SpecError) as caught:
        XNNPACKQuantizer().set_global(replace(good, input_activation=None, output_activation=None))
    assert "no kernel for integer weights and float activations" in str(caught.value)
    with pytest.raises(BackendError) as refused:
        qspec.quantize(Small(), (X,), backend=BACKEND, mode="weight only")
    assert refused.value.expected == "dynamic, static"


def test_relu6_has_the_clamped_range() -> None:
    torch.manual_seed(0)
    conv = nn.Conv2d(3, 4, 3)
    nn.init.constant_(conv.weight, 2.0)  # sums reach past 6
    result = qspec.quantize(nn.Sequential(conv, nn.ReLU6()), (X,), calibration=[(X,)], backend=BACKEND)
    values = [v for node in result.converted.graph.nodes if (v := quantized_value(node)) is not None]
    # The input and the result: a quantize between convolution and clamp would have the range of the unclamped sums.
    assert sum(ops.is_quantize(node) for node in result.converted.graph.nodes) == 2
    assert values[-1].scale == pytest.approx(6 / 255, rel=1e-6)
    assert values[-1].zero_point == -128


def test_float_only_operators_are_skipped_with_the_reason() -> None:
    result = qspec.quantize(Small(), (X,), calibration=[(X,)], backend=BACKEND)
    skipped = {entry.operator: entry for entry in result.coverage.skipped}
    assert skipped["aten.sigmoid.default"].code == "no integer kernel"
    assert "float kernel" in skipped["aten.sigmoid.default"].detail
    assert "aten.mean.dim" not in skipped


@pytest.mark.parametrize("name", ["conv2d", "linear"])
def test_without_its_row_an_operator_is_skipped(name: str) -> None:
    full = qspec.quantize(Small(), (X,), calibration=[(X,)], backend=BACKEND)
    table = replace(TABLE, rows=tuple(row for row in TABLE.rows if row.name != name))
    quantizer = qspec.TableQuantizer(table).set_global(get_symmetric_quantization_config())
    less = qspec.quantize(Small(), (X,), calibration=[(X,)], backend=BACKEND, quantizer=quantizer)
    assert len(less.coverage.quantized) < len(full.coverage.quantized)
    entry = next(entry for entry in less.coverage.skipped if name in entry.operator)
    assert entry.code == "no row"


def test_element_wise_rows_join_and_never_start() -> None:
    starts = {row.name for row in TABLE.rows if row.flow is Flow.STARTS}
    assert starts == {"conv1d", "conv2d", "conv_transpose1d", "conv_transpose2d", "embedding", "linear"}


@pytest.mark.parametrize("starts", [True, False])
def test_sums_and_products_start_integers_where_the_quantizer_says_so(starts: bool) -> None:
    quantizer = XNNPACKQuantizer(element_wise_starts=starts)
    quantizer.set_global(get_symmetric_quantization_config(is_per_channel=True))
    result = qspec.quantize(Residual(), (X,), calibration=[(X,)], backend=BACKEND, quantizer=quantizer)
    found = {entry.operator for entry in result.coverage.quantized}
    assert ("aten.add.Tensor" in found) is starts
    assert result.lowered(X).shape == X.shape


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.add(torch.tanh(self.first(x)), self.second(x))


def test_sum_with_a_float_operand_stays_in_float() -> None:
    result = qspec.quantize(Residual(), (X,), calibration=[(X,)], backend=BACKEND)
    entry = next(entry for entry in result.coverage.skipped if entry.operator == "aten.add.Tensor")
    assert entry.code == "input not quantized"


def test_user_module_is_left_alone() -> None:
    module = exported(Small(), X)
    before = str(module.graph)
    qspec.prepare_pt2e(module, XNNPACKQuantizer().set_global(get_symmetric_quantization_config()))
    assert str(module.graph) == before
