"""Every row through ExecuTorch's runtime: in integers, and within one output step of the converted graph.

ExecuTorch takes seconds for a program, however small, so that the cases of a family are one: side by side, each with
inputs and an output of its own.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from itertools import islice
from typing import NamedTuple

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import Result
from qspec_xnnpack import XNNPACKProgram, XNNPACKQuantizer, get_symmetric_quantization_config
from qspec_xnnpack._rows import TABLE, _elementwise, _pool, _shape

Function = Callable[..., Tensor]
Layer = tuple[Callable[..., nn.Module], tuple[object, ...], Mapping[str, object]]


class Case(NamedTuple):
    row: str  # label that coverage must show
    function: Function  # of as many tensors as there are shapes, then the layer if there is one
    shapes: tuple[tuple[int, ...], ...] = ((1, 8, 9, 10),)
    layer: Layer | None = None


class Model(nn.Module):
    """Applies a function to int8 tensors, each made by a depthwise 1 by 1 convolution by 1, which alters nothing."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.function = case.function
        self.layer = None if case.layer is None else case.layer[0](*case.layer[1], **case.layer[2])
        channels = [] if case.layer is not None else [shape[1] for shape in case.shapes]
        starts = [nn.Conv2d(c, c, 1, groups=c, bias=False) for c in channels]
        for start in starts:
            nn.init.ones_(start.weight)
        self.starts = nn.ModuleList(starts)

    def forward(self, *tensors: Tensor) -> Tensor:
        if self.layer is not None:
            return self.function(*tensors, self.layer)
        return self.function(*(start(x) for start, x in zip(self.starts, tensors, strict=True)))


class MM(nn.Module):
    """A product with a weight of (in, out), which no bias is added to."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.randn(10, 7) / 3), nn.Parameter(torch.randn(7))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


class AddMM(MM):
    """GPT-2's layer: rank 2, whatever the input, and a bias."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.addmm(self.bias, x.view(-1, 10), self.weight).view(*x.shape[:-1], 7)


class Normed(nn.Module):
    """A layer, then its batch norm."""

    def __init__(self, layer: nn.Module, norm: nn.Module) -> None:
        super().__init__()
        self.layer, self.norm = layer, norm
        for statistic in (norm.running_mean, norm.running_var):
            nn.init.uniform_(statistic, 0.5, 2.0)  # type: ignore[arg-type]  # nn.Module types attributes loosely

    def forward(self, x: Tensor) -> Tensor:
        normed: Tensor = self.norm(self.layer(x))
        return normed


def layer(x: Tensor, made: Function) -> Tensor:
    return made(x)


def layer_relu(x: Tensor, made: Function) -> Tensor:
    return F.relu(made(x))


def layer_relu6(x: Tensor, made: Function) -> Tensor:
    return F.relu6(made(x))


def layer_hardtanh(x: Tensor, made: Function) -> Tensor:
    return F.hardtanh(made(x), -0.5, 0.75)


def uneven_pad_layer(x: Tensor, made: Function) -> Tensor:
    return F.relu6(made(F.pad(x, (0, 1, 2, 1))))


def uneven_pad_signal(x: Tensor, made: Function) -> Tensor:
    return F.relu6(made(F.pad(x, (1, 2))))


def layer_clamp(x: Tensor, made: Function) -> Tensor:
    return made(x).clamp(-0.25, 1.5)


def add_relu(x: Tensor, y: Tensor) -> Tensor:
    return F.relu(x + y)


def add_relu6(x: Tensor, y: Tensor) -> Tensor:
    return F.relu6(x + y)


def mul_relu(x: Tensor, y: Tensor) -> Tensor:
    return F.relu(x * y)


def double(x: Tensor) -> Tensor:
    return x + x


def mean(x: Tensor) -> Tensor:
    return x.mean((-1, 2), keepdim=True)


def mean_flat(x: Tensor) -> Tensor:
    return x.mean((2, 3))


def mean_flat_by_name(x: Tensor) -> Tensor:
    return torch.mean(x, dim=(-2, -1), keepdim=False)


def cat(*tensors: Tensor) -> Tensor:
    return torch.cat(tensors, 1)


def view(x: Tensor) -> Tensor:
    return x.view(8, -1)


def reshape(x: Tensor) -> Tensor:
    return x.reshape(-1, 10)


def squeeze_permuted(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).squeeze(1)


def tail(x: Tensor) -> Tensor:
    return x[:, -3:]


IMAGE = (1, 8, 9, 10)
CONV = (nn.Conv2d, (8, 16, 3), {"padding": 1, "stride": 2})
DEPTHWISE = (nn.Conv2d, (8, 8, 3), {"groups": 8, "bias": False, "dilation": 2})
GROUPED = (nn.Conv2d, (8, 12, (3, 1)), {"groups": 4})
SIGNAL = (1, 8, 20)
CONV1D = (nn.Conv1d, (8, 16, 3), {"padding": 1, "stride": 2})
TRANSPOSED = (nn.ConvTranspose2d, (8, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1})
TRANSPOSED1D = (nn.ConvTranspose1d, (8, 6, 3), {"stride": 2, "padding": 1, "output_padding": 1})
LINEAR: Layer = (nn.Linear, (10, 7), {})


def normed2d() -> nn.Module:
    return Normed(nn.ConvTranspose2d(8, 6, 3, bias=False), nn.BatchNorm2d(6))


def normed1d() -> nn.Module:
    return Normed(nn.ConvTranspose1d(8, 6, 3), nn.BatchNorm1d(6))


CASES = {
    "conv2d": Case("conv2d", layer, layer=CONV),
    "conv2d same": Case("conv2d", layer, layer=(nn.Conv2d, (8, 4, 3), {"padding": "same"})),
    "conv2d relu": Case("conv2d + relu", layer_relu, layer=CONV),
    "conv2d relu6": Case("conv2d + hardtanh", layer_relu6, layer=CONV),
    "conv2d hardtanh": Case("conv2d + hardtanh", layer_hardtanh, layer=CONV),
    "depthwise": Case("conv2d + hardtanh", layer_relu6, layer=DEPTHWISE),
    "depthwise multiplier": Case("conv2d", layer, layer=(nn.Conv2d, (8, 16, 3), {"groups": 8})),
    "grouped": Case("conv2d", layer, layer=GROUPED),
    "padded conv2d": Case("conv2d + hardtanh", uneven_pad_layer, layer=CONV),
    "padded depthwise": Case("conv2d + hardtanh", uneven_pad_layer, layer=DEPTHWISE),
    "conv1d": Case("conv1d", layer, (SIGNAL,), CONV1D),
    "conv1d relu": Case("conv1d + relu", layer_relu, (SIGNAL,), CONV1D),
    "conv1d relu6": Case("conv1d + hardtanh", layer_relu6, (SIGNAL,), CONV1D),
    "conv1d same": Case("conv1d", layer, (SIGNAL,), (nn.Conv1d, (8, 4, 4), {"padding": "same"})),
    "conv1d depthwise": Case("conv1d", layer, (SIGNAL,), (nn.Conv1d, (8, 8, 3), {"groups": 8, "dilation": 2})),
    "conv1d grouped": Case("conv1d + relu", layer_relu, (SIGNAL,), (nn.Conv1d, (8, 12, 3), {"groups": 4})),
    "padded conv1d": Case("conv1d + hardtanh", uneven_pad_signal, (SIGNAL,), CONV1D),
    "conv_transpose2d": Case("conv_transpose2d", layer, layer=TRANSPOSED),
    "conv_transpose2d relu": Case("conv_transpose2d + relu", layer_relu, layer=TRANSPOSED),
    "conv_transpose2d relu6": Case("conv_transpose2d + hardtanh", layer_relu6, layer=TRANSPOSED),
    "conv_transpose2d no bias": Case("conv_transpose2d", layer, layer=(nn.ConvTranspose2d, (8, 5, 2), {"bias": False})),
    "conv_transpose1d": Case("conv_transpose1d", layer, (SIGNAL,), TRANSPOSED1D),
    "conv_transpose1d relu": Case("conv_transpose1d + relu", layer_relu, (SIGNAL,), TRANSPOSED1D),
    "conv_transpose1d hardtanh": Case("conv_transpose1d + hardtanh", layer_hardtanh, (SIGNAL,), TRANSPOSED1D),
    "conv_transpose2d batch norm": Case("conv_transpose2d + relu", layer_relu, layer=(normed2d, (), {})),
    "conv_transpose1d batch norm": Case("conv_transpose1d", layer, (SIGNAL,), (normed1d, (), {})),
    "conv2d clamp": Case("conv2d + hardtanh", layer_clamp, layer=CONV),
    "linear": Case("linear", layer, ((5, 10),), LINEAR),
    "linear of rank 3": Case("linear", layer, ((2, 3, 10),), LINEAR),
    "linear relu": Case("linear + relu", layer_relu, ((5, 10),), LINEAR),
    "linear hardtanh": Case("linear + hardtanh", layer_hardtanh, ((5, 10),), (nn.Linear, (10, 7), {"bias": False})),
    "add": Case("add", torch.add, (IMAGE, IMAGE)),
    "add broadcast": Case("add", torch.add, (IMAGE, (1, 8, 1, 1))),
    "add to itself": Case("add", double),
    "add relu": Case("add + relu", add_relu, (IMAGE, IMAGE)),
    "sub": Case("sub", torch.sub, (IMAGE, IMAGE)),
    "mul": Case("mul", torch.mul, (IMAGE, IMAGE)),
    "mul broadcast": Case("mul", torch.mul, (IMAGE, (1, 8, 1, 1))),
    "relu": Case("relu", mul_relu, (IMAGE, IMAGE)),
    "hardtanh": Case("hardtanh", add_relu6, (IMAGE, IMAGE)),
    "mean": Case("mean", mean),
    "mean without keepdim": Case("mean", mean_flat),
    "mean by name": Case("mean", mean_flat_by_name),
    "clamp below": Case("clamp", partial(torch.clamp, min=-0.5)),
    "clamp above": Case("clamp", partial(torch.clamp_max, max=0.75)),
    "elu": Case("elu", F.elu),
    "elu alpha": Case("elu", partial(F.elu, alpha=0.5)),
    "addmm": Case("linear", layer, ((5, 10),), (AddMM, (), {})),
    "addmm of rank 3": Case("linear", layer, ((2, 3, 10),), (AddMM, (), {})),
    "mm": Case("linear", layer, ((5, 10),), (MM, (), {})),
    "mm relu": Case("linear + relu", layer_relu, ((5, 10),), (MM, (), {})),
    "mm hardtanh": Case("linear + hardtanh", layer_hardtanh, ((5, 10),), (MM, (), {})),
    "adaptive_avg_pool2d": Case("adaptive_avg_pool2d", partial(F.adaptive_avg_pool2d, output_size=1)),
    "max_pool2d": Case("max_pool2d", partial(F.max_pool2d, kernel_size=3, stride=2, padding=1)),
    "max_pool2d ceil": Case("max_pool2d", partial(F.max_pool2d, kernel_size=(2, 3), ceil_mode=True)),
    "cat": Case("cat", cat, (IMAGE, (1, 4, 9, 10))),
    "cat of six": Case("cat", cat, (IMAGE,) * 6),
    "view": Case("view", view),
    "reshape": Case("reshape", reshape),
    "flatten": Case("flatten", partial(torch.flatten, start_dim=1)),
    "unsqueeze": Case("unsqueeze", partial(torch.unsqueeze, dim=-1)),
    "unsqueeze in front": Case("view", partial(torch.unsqueeze, dim=1)),
    "squeeze": Case("view", partial(torch.squeeze, dim=2), ((2, 8, 1, 10),)),
    "squeeze of all": Case("view", torch.squeeze, ((1, 8, 1, 10),)),
    "squeeze of a permuted tensor": Case("view", squeeze_permuted, ((2, 8, 1, 10),)),
    "permute": Case("permute", partial(torch.permute, dims=(0, 2, 3, 1))),
    "transpose": Case("transpose", partial(torch.transpose, dim0=1, dim1=-1)),
    "slice": Case("slice", tail),
}


def test_every_row_has_a_case() -> None:
    covered = {case.row.partition(" + ")[0] for case in CASES.values()}
    assert covered == {row.name for row in TABLE.rows}


def test_every_chain_has_a_case() -> None:
    chains = {" + ".join((row.name, *(op.kernel for op in chain))) for row in TABLE.rows for chain in row.chains}
    assert {case.row for case in CASES.values()} == chains


def family(case: Case) -> str:
    """Convolutions and linear layers by their row, the others by the file of it."""
    row = case.row.partition(" + ")[0]
    files = {"element-wise": _elementwise.ROWS, "pool": _pool.ROWS, "shape": _shape.ROWS}
    return next((name for name, rows in files.items() if row in {each.name for each in rows}), row)


FAMILIES = tuple(dict.fromkeys(map(family, CASES.values())))


class Several(nn.Module):
    """Cases side by side: takes the inputs of all, one case after the other, and returns an output of each."""

    def __init__(self, cases: Sequence[Case]) -> None:
        super().__init__()
        self.cases = nn.ModuleList(map(Model, cases))
        self.shapes = [shape for case in cases for shape in case.shapes]
        self._counts = [len(case.shapes) for case in cases]

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        given = iter(tensors)
        return [case(*islice(given, count)) for case, count in zip(self.cases, self._counts, strict=True)]


class Program(NamedTuple):
    """Several cases, quantized and lowered."""

    inputs: tuple[Tensor, ...]
    real: list[Tensor]
    result: Result
    lowered: XNNPACKProgram

    @classmethod
    def of(cls, cases: Sequence[Case], quantize: Callable[..., Result], **arguments: object) -> "Program":
        torch.manual_seed(0)
        model = Several(cases).eval()
        inputs = tuple(torch.randn(shape) * 2 for shape in model.shapes)
        result = quantize(model, *inputs, **arguments)
        assert isinstance(result.lowered, XNNPACKProgram)
        with torch.no_grad():
            return cls(inputs, model(*inputs), result, result.lowered)

    def labels(self) -> list[set[str]]:
        """Of each case, the labels of the rows that the delegate runs in integers."""
        rows = self.lowered.delegation.rows
        ran = [(entry.module.split("."), entry.node) for entry in self.result.coverage.quantized if entry.node in rows]
        return [{rows[node] for path, node in ran if path[:2] == ["cases", str(i)]} for i in range(len(self.real))]

    def check(self, names: Sequence[str], steps: Sequence[float]) -> list[Tensor]:
        """Compares the program with the converted graph, and returns what it gives."""
        delegation = self.lowered.delegation
        assert self.result.coverage.skipped == ()
        assert (delegation.delegates, delegation.outside) == (1, ())
        with torch.no_grad():
            wanted, given = self.result.converted(*self.inputs), self.lowered(*self.inputs)
        for name, want, found, step in zip(names, wanted, given, steps, strict=True):
            # One rounding may fall to the other side; float32 arithmetic on either side moves it a little more.
            torch.testing.assert_close(found, want, rtol=1e-5, atol=step * 1.001, msg=f"{name}: {{}}".format)
        return list(given)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel")
@pytest.mark.parametrize("name", FAMILIES)
def test_rows_run_in_integers(
    name: str,
    quantized: Callable[..., Result],
    steps: Callable[[GraphModule], list[float]],
    kernels: Callable[[bytes], list[str]],
) -> None:
    cases = {key: case for key, case in CASES.items() if family(case) == name}
    program = Program.of(list(cases.values()), quantized)
    for key, case, labels in zip(cases, cases.values(), program.labels(), strict=True):
        assert case.row in labels, key
    given = program.check(list(cases), steps(program.result.converted))
    # One to quantize each input, and one to dequantize each output: nothing between them is in float.
    assert kernels(program.lowered.buffer).count("XNNConvert") == len(program.inputs) + len(cases)
    for key, real, found in zip(cases, program.real, given, strict=True):
        assert 10 * torch.log10(real.square().sum() / (found - real).square().sum()) > 25, key


GROUPED_TRANSPOSED: Layer = (nn.ConvTranspose2d, (8, 6, 3), {"stride": 2, "groups": 2})
ONE_SCALE = {
    **{name: CASES[name] for name in ("conv2d relu6", "depthwise", "padded conv2d", "conv1d relu")},
    **{name: CASES[name] for name in ("conv_transpose2d relu", "conv_transpose1d", "linear hardtanh")},
    # With a scale for each channel the kernel takes one group alone.
    "conv_transpose2d grouped": Case("conv_transpose2d + relu", layer_relu, layer=GROUPED_TRANSPOSED),
}


def test_layers_with_one_scale_for_their_weight_run_in_integers(
    quantized: Callable[..., Result],
    steps: Callable[[GraphModule], list[float]],
    datatypes: Callable[[bytes], list[str]],
) -> None:
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    program = Program.of(list(ONE_SCALE.values()), quantized, quantizer=quantizer)
    assert program.labels() == [{case.row} for case in ONE_SCALE.values()]
    program.check(list(ONE_SCALE), steps(program.result.converted))
    found = datatypes(program.lowered.buffer)
    # A weight has a type of its own where there is a scale for each channel; nothing but biases is of another one.
    assert set(found) <= {"xnn_datatype_fp32", "xnn_datatype_qint8", "xnn_datatype_qint32"}
    assert found.count("xnn_datatype_qint8") >= 3 * len(ONE_SCALE)


def add_number(x: Tensor, made: Function) -> Tensor:
    return 0.25 + made(x)


def multiply(x: Tensor, made: Function) -> Tensor:
    return made(x) * -3


BARE: Layer = (nn.Identity, (), {})


def test_numbers_are_operands_where_sums_and_products_start(
    quantized: Callable[..., Result], steps: Callable[[GraphModule], list[float]]
) -> None:
    cases = {"add": Case("add", add_number, ((2, 8, 9),), BARE), "mul": Case("mul", multiply, ((2, 8, 9),), BARE)}
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config())
    program = Program.of(list(cases.values()), quantized, quantizer=quantizer)
    assert program.labels() == [{"add"}, {"mul"}]
    sizes = steps(program.result.converted)
    given = program.check(list(cases), sizes)
    for real, found, step in zip(program.real, given, sizes, strict=True):
        # The number is exact. A step of the product is at least as large as three times one of the input is.
        torch.testing.assert_close(found, real, rtol=0, atol=1.1 * step)
