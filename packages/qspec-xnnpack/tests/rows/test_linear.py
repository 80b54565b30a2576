"""Linear rows through ExecuTorch's runtime: static ones within one step of the converted graph, dynamic ones equal."""

import pytest
import torch
from torch import Tensor, nn
from xnnpack_support import (
    WEIGHTS,
    Case,
    Layer,
    SideBySide,
    check_complete,
    check_dynamic,
    check_one_scale,
    check_rows,
    datatypes,
    dynamic,
    layer,
    layer_hardtanh,
    layer_relu,
    lowered,
)

import qspec_core as qspec
from qspec_xnnpack import BACKEND
from qspec_xnnpack._rows import _linear


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


LINEAR: Layer = (nn.Linear, (10, 7), {})
CASES = {
    "linear": Case("linear", layer, ((5, 10),), LINEAR),
    "linear of rank 3": Case("linear", layer, ((2, 3, 10),), LINEAR),
    "linear relu": Case("linear + relu", layer_relu, ((5, 10),), LINEAR),
    "linear hardtanh": Case("linear + hardtanh", layer_hardtanh, ((5, 10),), (nn.Linear, (10, 7), {"bias": False})),
    "addmm": Case("linear", layer, ((5, 10),), (AddMM, (), {})),
    "addmm of rank 3": Case("linear", layer, ((2, 3, 10),), (AddMM, (), {})),
    "mm": Case("linear", layer, ((5, 10),), (MM, (), {})),
    "mm relu": Case("linear + relu", layer_relu, ((5, 10),), (MM, (), {})),
    "mm hardtanh": Case("linear + hardtanh", layer_hardtanh, ((5, 10),), (MM, (), {})),
}


def test_rows_run_in_integers() -> None:
    check_rows(CASES)


def test_every_chain_has_a_case() -> None:
    check_complete(CASES, _linear.ROWS)


def test_weights_with_one_scale_run_in_integers() -> None:
    check_one_scale({"linear hardtanh": CASES["linear hardtanh"]})


TAILS = {"linear": nn.Identity(), "linear + relu": nn.ReLU(), "linear + hardtanh": nn.Hardtanh(-0.5, 0.75)}


@pytest.mark.parametrize("datatype", WEIGHTS)
def test_dynamic_layers_run_in_integers(datatype: str) -> None:
    torch.manual_seed(0)
    shapes = [shape for shape in ((5, 96), (2, 3, 96)) for _ in TAILS]
    inputs = [torch.randn(shape) * torch.rand(*shape[:-1], 1) * 5 for shape in shapes]
    model = SideBySide([nn.Sequential(nn.Linear(96, 48), tail) for _ in range(2) for tail in TAILS.values()]).eval()
    result = dynamic(model, *inputs, **WEIGHTS[datatype])
    least = 35 if datatype == "xnn_datatype_qcint8" else 14
    program = check_dynamic(model, result, inputs, [*TAILS] * 2, least)
    assert datatypes(program.buffer).count("xnn_datatype_qdint8") == len(inputs)
    assert datatypes(program.buffer).count(datatype) == len(inputs)


def test_input_features_that_are_no_multiple_of_the_group_stay_float() -> None:
    with pytest.raises(qspec.NothingQuantizedError, match="multiple of group_size=32"):
        dynamic(nn.Linear(40, 8).eval(), torch.randn(2, 40), **WEIGHTS["xnn_datatype_qbint4"])


def test_mode_dynamic_needs_no_quantizer_and_no_calibration() -> None:
    x = torch.randn(3, 16)
    result = qspec.quantize(nn.Linear(16, 4).eval(), (x,), backend=BACKEND, mode="dynamic")
    assert list(lowered(result).delegation.rows.values()) == ["linear"]
