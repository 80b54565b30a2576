"""Dynamic rows through ExecuTorch's runtime: the kernel by its data types, and the result of the converted graph."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import qspec_core as qspec
from qspec_core import Result
from qspec_xnnpack import BACKEND, XNNPACKProgram, XNNPACKQuantizer, get_symmetric_quantization_config

WEIGHTS = {
    "xnn_datatype_qcint8": {},
    "xnn_datatype_qcint4": {"weight_qmin": -8, "weight_qmax": 7},
    "xnn_datatype_qbint4": {"weight_qmin": -8, "weight_qmax": 7, "group_size": 32},
}
Quantized = Callable[..., Result]


def dynamic(model: nn.Module, x: Tensor, **weight: int) -> Result:
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=True, **weight)
    quantizer = XNNPACKQuantizer().set_global(config)
    return qspec.quantize(model, (x,), backend=BACKEND, mode="dynamic", quantizer=quantizer)


def sqnr(real: Tensor, given: Tensor) -> float:
    return float(10 * torch.log10(real.square().sum() / (given - real).square().sum()))


@pytest.mark.parametrize("shape", [(5, 96), (2, 3, 96)], ids=str)
@pytest.mark.parametrize("datatype", WEIGHTS)
@pytest.mark.parametrize("tail", [nn.Identity(), nn.ReLU(), nn.Hardtanh(-0.5, 0.75)], ids=str)
def test_linear_runs_in_integers(
    datatype: str,
    shape: tuple[int, ...],
    tail: nn.Module,
    lowered: Callable[[Result], XNNPACKProgram],
    datatypes: Callable[[bytes], list[str]],
) -> None:
    torch.manual_seed(0)
    model, x = nn.Sequential(nn.Linear(96, 48), tail).eval(), torch.randn(shape) * torch.rand(*shape[:-1], 1) * 5
    result = dynamic(model, x, **WEIGHTS[datatype])
    program = lowered(result)
    label = {"Identity": "linear", "ReLU": "linear + relu", "Hardtanh": "linear + hardtanh"}[type(tail).__name__]
    assert list(program.delegation.rows.values()) == [label]
    assert result.coverage.skipped == ()
    assert (program.delegation.delegates, program.delegation.outside) == (1, ())
    assert datatypes(program.buffer).count("xnn_datatype_qdint8") == 1
    assert datatypes(program.buffer).count(datatype) == 1
    with torch.no_grad():
        given, wanted, real = program(x), result.converted(x), model(x)
    # Both sides find the same parameters and sum integers; float32 roundings remain.
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=2e-6)
    assert sqnr(real, given) > (35 if datatype == "xnn_datatype_qcint8" else 14)


@pytest.mark.parametrize(
    ("layer", "row"),
    [
        (nn.Conv2d(8, 12, 3, stride=2, padding=1), "conv2d"),
        (nn.Conv2d(8, 12, 3, groups=2, bias=False), "conv2d"),
        (nn.ConvTranspose2d(8, 6, 3, stride=2), "conv_transpose2d"),
    ],
    ids=str,
)
def test_convolution_runs_in_integers(
    layer: nn.Module,
    row: str,
    lowered: Callable[[Result], XNNPACKProgram],
    datatypes: Callable[[bytes], list[str]],
) -> None:
    torch.manual_seed(0)
    x = torch.randn(1, 8, 9, 10)
    result = dynamic(nn.Sequential(layer, nn.ReLU()).eval(), x)
    program = lowered(result)
    assert list(program.delegation.rows.values()) == [f"{row} + relu"]
    assert (program.delegation.delegates, program.delegation.outside) == (1, ())
    assert datatypes(program.buffer).count("xnn_datatype_qdint8") == 1
    assert datatypes(program.buffer).count("xnn_datatype_qcint8") == 1
    with torch.no_grad():
        given, wanted, real = program(x), result.converted(x), F.relu(layer(x))
    torch.testing.assert_close(given, wanted, rtol=1e-5, atol=2e-6)
    assert sqnr(real, given) > 35


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
