"""Linears whose activations are quantized in each call, against integer arithmetic in plain torch."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from x86_support import FORMS, Lower, sqnr

import qspec_core.ops
from qspec_core import Mode, QuantizationConfig, convert_pt2e, coverage, prepare_pt2e
from qspec_core.observers import AffineQuantizedPlaceholderObserver, MappingType, PerToken
from qspec_x86 import (
    LOWERING_KEY,
    X86InductorQuantizer,
    default_quantizer,
    load_package,
    lower_eager,
    package,
)
from qspec_x86._config import ONE_RANGE, default_config


class Heads(nn.Module):
    """Three linears of one input, as attention has them, one with a curve."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key = nn.Linear(24, 16), nn.Linear(24, 16, bias=False)
        self.value = nn.Linear(24, 40)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.query(x), torch.relu(self.key(x)), nn.functional.silu(self.value(x))


def integers(x: Tensor, linear: nn.Linear, weight: Tensor, scale: Tensor, by_row: bool) -> Tensor:
    """The linear on the integers that stand for its input."""
    ends = x.double() if by_row else x.double().reshape(1, 1, -1)
    # A column of zeros: the range holds 0, and of no values it is 0..0.
    ends = nn.functional.pad(ends, (0, 1))
    low, high = ends.amin(-1, keepdim=True), ends.amax(-1, keepdim=True)
    step = ((high - low) / 255).clamp(min=torch.finfo(torch.float32).eps)
    zero_point = (-torch.round(low / step)).clamp(0, 255)
    values = torch.clamp(torch.round(x.double() / step) + zero_point, 0, 255) - zero_point
    y = (values @ weight.double().t()) * step * scale.double()
    bias = linear._parameters["bias"]
    return y if bias is None else y + bias.double()


def convert(model: nn.Module, example: Tensor, config: QuantizationConfig) -> GraphModule:
    sizes = {0: torch.export.Dim("batch", max=16), 1: torch.export.Dim("length", max=64)}
    exported = torch.export.export(model.eval(), (example,), dynamic_shapes=(sizes,)).module()
    assert isinstance(exported, GraphModule)
    quantizer = X86InductorQuantizer(target="any").set_global(config)
    return convert_pt2e(prepare_pt2e(exported, quantizer))


def stored(converted: GraphModule, outputs: int, index: int) -> tuple[Tensor, Tensor]:
    """Integers and scales of the `index`-th linear with that many outputs."""
    found = []
    for node in converted.graph.find_nodes(op="call_function", target=qspec_core.ops.DEQUANTIZE_PER_CHANNEL):
        weight, scale = (getattr(converted, str(argument.target)) for argument in node.args[:2])
        found += [(weight, scale)] if weight.shape[0] == outputs else []
    return found[index]


INPUTS: dict[str, Callable[[], Tensor]] = {
    "example": lambda: torch.randn(2, 5, 24),
    "one row": lambda: torch.randn(1, 1, 24),
    "longer": lambda: torch.randn(7, 50, 24),
    "above zero": lambda: torch.rand(3, 4, 24) + 5.0,  # a range that does not hold 0 by itself
    "below zero": lambda: -torch.rand(3, 4, 24) - 5.0,
    "zeros": lambda: torch.zeros(2, 3, 24),
    "large": lambda: 1e6 * torch.randn(2, 3, 24),
    "transposed": lambda: torch.randn(24, 5, 2).permute(2, 1, 0),
    "strided": lambda: torch.randn(4, 10, 48)[::2, ::2, ::2],
    "no batch": lambda: torch.zeros(0, 5, 24),
    "no length": lambda: torch.zeros(3, 0, 24),
}


@dataclass(frozen=True)
class Case:
    """A model, converted with one range for an activation or with one for each row of it."""

    model: Heads
    converted: GraphModule
    by_row: bool

    def check(self, found: tuple[Tensor, ...], x: Tensor) -> None:
        tails: list[Callable[[Tensor], Tensor]] = [torch.clone, torch.relu, nn.functional.silu]
        linears = [(self.model.query, 16, 0), (self.model.key, 16, 1), (self.model.value, 40, 0)]
        for y, tail, (linear, outputs, index) in zip(found, tails, linears, strict=True):
            expected = tail(integers(x, linear, *stored(self.converted, outputs, index), self.by_row))
            assert y.shape == expected.shape
            size = float(expected.abs().max()) if expected.numel() else 1.0
            off = (y.double() - expected).abs()
            # A value in the middle of two steps may go to either, as float32 divides it.
            assert off.numel() == 0 or (float(off.max()) <= 0.01 * size and float(off.median()) <= 1e-5 * size)


@pytest.fixture(scope="module", params=[False, True], ids=["one range", "by row"])
def case(request: pytest.FixtureRequest) -> Case:
    torch.manual_seed(0)
    model, by_row = Heads(), bool(request.param)
    default = default_config(Mode.DYNAMIC)
    config = default if by_row else replace(default, input_activation=ONE_RANGE, output_activation=ONE_RANGE)
    return Case(model, convert(model, torch.randn(2, 5, 24), config), by_row)


@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("name", INPUTS)
def test_equals_integers(name: str, case: Case, lower: Lower) -> None:
    x = INPUTS[name]()
    with torch.no_grad():
        case.check(lower(case.converted)(x), x)


@pytest.mark.parametrize("lower", FORMS)
def test_one_input_is_quantized_once(case: Case, lower: Lower) -> None:
    lowered = lower(case.converted)
    targets = [str(node.target) for node in lowered.graph.nodes]
    assert sorted(lowered.meta[LOWERING_KEY].lowered.values()) == ["linear", "linear + relu", "linear + swish"]
    assert targets.count("onednn.qconv_pointwise.default" if case.by_row else "onednn.qconv_pointwise.tensor") == 3
    assert targets.count("quantized_decomposed.quantize_per_tensor.tensor") == (0 if case.by_row else 1)
    assert targets.count("aten.amin.default") == (1 if case.by_row else 2)
    assert not any("choose_qparams" in target or "dequantize" in target for target in targets)


def test_the_package_and_the_compiled_form_equal_integers(case: Case, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = package(case.converted, (torch.randn(2, 5, 24),), tmp_path_factory.mktemp("dynamic") / "heads.pt2", "any")
    loaded = load_package(path)
    torch._dynamo.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inductor's own, which differ between versions of torch
        compiled = torch.compile(lower_eager(case.converted, "any"))
        for name in ("example", "longer", "above zero", "strided"):
            x = INPUTS[name]()
            case.check(loaded(x), x)
            case.check(compiled(x), x)
        for shape in ((1, 1, 24), (16, 64, 24)):
            x = torch.randn(shape)
            case.check(loaded(x), x)


class Rows(nn.Module):
    """A linear of as many rows as the input has, one of a single row, and one of a vector."""

    def __init__(self) -> None:
        super().__init__()
        self.many, self.single, self.vector = nn.Linear(24, 16), nn.Linear(24, 40), nn.Linear(24, 16, bias=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return self.many(x), torch.relu(self.single(x[-1:])), self.vector(x[0])


@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_a_single_row_needs_no_rescaling(symmetric: bool, lower: Lower) -> None:
    torch.manual_seed(0)
    # Rows of very different size: with one range, the small ones would have few of the 256 steps.
    model, x = Rows().eval(), torch.randn(5, 24) * torch.tensor([[1e-3], [1.0], [30.0], [1e3], [1e-2]])
    config = default_config(Mode.DYNAMIC)
    if symmetric:
        constructor = AffineQuantizedPlaceholderObserver.with_args(
            mapping_type=MappingType.SYMMETRIC, target_dtype=torch.int8, granularity=PerToken()
        )
        assert config.input_activation is not None
        activation = replace(config.input_activation, observer_or_fake_quant_ctr=constructor)
        config = replace(config, input_activation=activation, output_activation=activation)
    exported = torch.export.export(model, (x,)).module()
    assert isinstance(exported, GraphModule)
    converted = convert_pt2e(prepare_pt2e(exported, X86InductorQuantizer(target="any").set_global(config)))
    lowered = lower(converted)
    targets = [str(node.target) for node in lowered.graph.nodes]
    assert targets.count("onednn.qconv_pointwise.default") == 1
    assert targets.count("onednn.qconv_pointwise.tensor") == 2
    assert targets.count("aten.relu.default") == 0
    with torch.no_grad():
        for float_y, converted_y, y in zip(model(x), converted(x), lowered(x), strict=True):
            assert sqnr(float_y, y) > 30
            assert sqnr(converted_y, y) > 45
            if len(float_y) == len(x):
                assert all(sqnr(of_float, of_row) > 25 for of_float, of_row in zip(float_y, y, strict=True))


class Convolutions(nn.Module):
    """A convolution over each number of dimensions, one with a sum, and a depthwise one."""

    def __init__(self) -> None:
        super().__init__()
        self.plane, self.again = nn.Conv2d(3, 16, 3, stride=2, padding=1), nn.Conv2d(16, 16, 1)
        self.depthwise, self.line = nn.Conv2d(16, 16, 3, padding=1, groups=16), nn.Conv1d(16, 8, 3, bias=False)
        self.volume = nn.Conv3d(2, 4, (2, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.relu(self.plane(x))
        y = nn.functional.silu(self.depthwise(self.again(y) + y))
        z = nn.functional.hardswish(self.line(y.flatten(2)))
        result: Tensor = self.volume(z[:, None].expand(-1, 2, -1, -1).reshape(2, 2, 8, 2, -1).transpose(2, 3))
        return result


@pytest.mark.parametrize("lower", FORMS)
def test_convolutions_as_close_to_float_as_8_bits_are(lower: Lower) -> None:
    torch.manual_seed(0)
    model, x = Convolutions().eval(), torch.randn(2, 3, 16, 20) + 3
    exported = torch.export.export(model, (x,)).module()
    assert isinstance(exported, GraphModule)
    converted = convert_pt2e(prepare_pt2e(exported, default_quantizer(mode=Mode.DYNAMIC)))
    layers = {entry.module: entry.row or entry.detail for entry in coverage(converted) if entry.is_layer}
    rows = [layers[name] for name in ("plane", "again", "line")]
    assert rows == ["conv2d.dynamic + relu", "conv2d.dynamic", "conv1d.dynamic + hardswish"]
    assert "depthwise" in layers["depthwise"]
    assert "no dynamic form" in layers["volume"]
    lowered = lower(converted)
    assert [str(node.target) for node in lowered.graph.nodes].count("onednn.qconv_pointwise.tensor") == 3
    with torch.no_grad():
        for given in (x, x.to(memory_format=torch.channels_last), torch.randn(20, 16, 3, 2).permute(3, 2, 1, 0)):
            assert sqnr(model(given), converted(given)) > 30
            assert sqnr(converted(given), lowered(given)) > 50
