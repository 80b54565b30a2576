"""Dynamic rows through ExecuTorch's runtime: the kernel by its data types, and the result of the converted graph."""

from collections.abc import Callable, Mapping, Sequence

import pytest
import torch
from torch import Tensor, nn

import qspec_core as qspec
from qspec_core import Result
from qspec_xnnpack import BACKEND, XNNPACKProgram, XNNPACKQuantizer, get_symmetric_quantization_config

WEIGHTS = {
    "xnn_datatype_qcint8": {},
    "xnn_datatype_qcint4": {"weight_qmin": -8, "weight_qmax": 7},
    "xnn_datatype_qbint4": {"weight_qmin": -8, "weight_qmax": 7, "group_size": 32},
}


def dynamic(model: nn.Module, *inputs: Tensor, **weight: int) -> Result:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True, **weight)
    quantizer = XNNPACKQuantizer().set_global(config)
    return qspec.quantize(model, inputs, backend=BACKEND, mode="dynamic", quantizer=quantizer)


def sqnr(real: Tensor, given: Tensor) -> float:
    return float(10 * torch.log10(real.square().sum() / (given - real).square().sum()))


class SideBySide(nn.Module):
    """Layers, each with an input of its own: ExecuTorch takes seconds for a program, however small."""

    def __init__(self, layers: Sequence[nn.Module]) -> None:
        super().__init__()
        self.layers = nn.ModuleList(layers)

    def forward(self, *tensors: Tensor) -> list[Tensor]:
        return [layer(x) for layer, x in zip(self.layers, tensors, strict=True)]


def check(
    model: nn.Module, result: Result, program: XNNPACKProgram, inputs: Sequence[Tensor], labels: list[str], least: float
) -> None:
    """The delegate runs all layers, gives what the converted graph gives, and stays near float."""
    assert list(program.delegation.rows.values()) == labels
    assert result.coverage.skipped == ()
    assert (program.delegation.delegates, program.delegation.outside) == (1, ())
    with torch.no_grad():
        given, wanted, real = program(*inputs), result.converted(*inputs), model(*inputs)
    for label, found, want, true in zip(labels, given, wanted, real, strict=True):
        # Both sides find the same parameters and sum integers; float32 roundings remain.
        torch.testing.assert_close(found, want, rtol=1e-5, atol=2e-6)
        assert sqnr(true, found) > least, label


TAILS = {"linear": nn.Identity(), "linear + relu": nn.ReLU(), "linear + hardtanh": nn.Hardtanh(-0.5, 0.75)}


@pytest.mark.parametrize("datatype", WEIGHTS)
def test_linear_layers_run_in_integers(
    datatype: str, lowered: Callable[[Result], XNNPACKProgram], datatypes: Callable[[bytes], list[str]]
) -> None:
    torch.manual_seed(0)
    shapes = [shape for shape in ((5, 96), (2, 3, 96)) for _ in TAILS]
    inputs = [torch.randn(shape) * torch.rand(*shape[:-1], 1) * 5 for shape in shapes]
    model = SideBySide([nn.Sequential(nn.Linear(96, 48), tail) for _ in range(2) for tail in TAILS.values()]).eval()
    result = dynamic(model, *inputs, **WEIGHTS[datatype])
    program = lowered(result)
    check(model, result, program, inputs, [*TAILS] * 2, 35 if datatype == "xnn_datatype_qcint8" else 14)
    assert datatypes(program.buffer).count("xnn_datatype_qdint8") == len(inputs)
    assert datatypes(program.buffer).count(datatype) == len(inputs)


CONVOLUTIONS: tuple[tuple[str, Callable[..., nn.Module], tuple[int, ...], Mapping[str, object]], ...] = (
    ("conv2d + relu", nn.Conv2d, (8, 12, 3), {"stride": 2, "padding": 1}),
    ("conv2d + relu", nn.Conv2d, (8, 12, 3), {"groups": 2, "bias": False}),
    ("conv_transpose2d + relu", nn.ConvTranspose2d, (8, 6, 3), {"stride": 2}),
)


def test_convolutions_run_in_integers(
    lowered: Callable[[Result], XNNPACKProgram], datatypes: Callable[[bytes], list[str]]
) -> None:
    torch.manual_seed(0)
    layers: list[nn.Module] = [made(*sizes, **options) for _, made, sizes, options in CONVOLUTIONS]
    model = SideBySide([nn.Sequential(layer, nn.ReLU()) for layer in layers]).eval()
    inputs = [torch.randn(1, 8, 9, 10) for _ in layers]
    result = dynamic(model, *inputs)
    program = lowered(result)
    check(model, result, program, inputs, [label for label, *_ in CONVOLUTIONS], 35)
    assert datatypes(program.buffer).count("xnn_datatype_qdint8") == len(layers)
    assert datatypes(program.buffer).count("xnn_datatype_qcint8") == len(layers)


@pytest.mark.parametrize(
    ("layer", "shape", "weight", "words"),
    [
        (nn.Conv2d(8, 8, 3, groups=8), (1, 8, 9, 9), {}, "depthwise"),
        (nn.Conv2d(8, 8, 3), (2, 8, 9, 9), {}, "batch of 2"),
        (
            nn.Sequential(nn.ZeroPad2d((0, 1, 0, 1)), nn.Conv2d(8, 8, 3)),
            (1, 8, 9, 9),
            {},
            "absorbs no pad when dynamic",
        ),
        (nn.Conv1d(8, 8, 3), (1, 8, 9), {}, "no dynamic form"),
        (nn.Conv2d(8, 8, 3), (1, 8, 9, 9), WEIGHTS["xnn_datatype_qcint4"], "for linear layers"),
        (nn.Linear(40, 8), (2, 40), WEIGHTS["xnn_datatype_qbint4"], "groups of 32"),
    ],
    ids=["depthwise", "batch", "pad", "conv1d", "4 bits", "groups"],
)
def test_what_no_kernel_takes_stays_float_with_the_reason(
    layer: nn.Module, shape: tuple[int, ...], weight: dict[str, int], words: str
) -> None:
    with pytest.raises(qspec.NothingQuantizedError) as caught:
        dynamic(layer.eval(), torch.randn(shape), **weight)
    assert words in str(caught.value)


def test_mode_dynamic_needs_no_quantizer_and_no_calibration(lowered: Callable[[Result], XNNPACKProgram]) -> None:
    x = torch.randn(3, 16)
    result = qspec.quantize(nn.Linear(16, 4).eval(), (x,), backend=BACKEND, mode="dynamic")
    assert list(lowered(result).delegation.rows.values()) == ["linear"]
