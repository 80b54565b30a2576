"""Recurrent layers in the delegate: the body of the loop is compiled apart, and the runtime's results are checked."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from xnnpack_support import lowered

import qspec_core as qspec
from qspec_xnnpack._backend import default_quantizer

pytestmark = [
    pytest.mark.filterwarnings("ignore:The tensor attributes"),  # torch.export of nn.LSTM
    pytest.mark.filterwarnings("ignore:RNN module weights"),
    pytest.mark.filterwarnings("ignore:LSTM with projections"),
]
STATIC, DYNAMIC = qspec.Mode.STATIC, qspec.Mode.DYNAMIC
LAYERS: dict[str, tuple[Callable[[], nn.Module], qspec.Mode]] = {
    "lstm": (lambda: nn.LSTM(7, 12, bidirectional=True, proj_size=5, batch_first=True), STATIC),
    "gru": (lambda: nn.GRU(7, 12, 2, bias=False), DYNAMIC),
    "relu": (lambda: nn.RNN(7, 12, nonlinearity="relu"), STATIC),
}


def leaves(value: Any) -> list[Tensor]:
    found: list[Tensor] = torch.utils._pytree.tree_leaves(value)
    return found


def result(model: nn.Module, x: Tensor, mode: qspec.Mode, *, keep: bool = False) -> qspec.Result:
    """Quantized; with `keep`, the recurrent layers stay in float."""
    quantizer = default_quantizer(mode=mode, target="any")
    if keep:
        quantizer.set_module_type(nn.LSTM, None)
    calibration = [(x,)] if mode is STATIC else None
    return qspec.quantize(model, (x,), calibration=calibration, backend="xnnpack", mode=mode, quantizer=quantizer)


@torch.no_grad()
@pytest.mark.parametrize("kind", LAYERS)
def test_the_runtime_gives_the_results_of_the_converted_graph(kind: str) -> None:
    torch.manual_seed(0)
    make, mode = LAYERS[kind]
    x = torch.randn(4, 5, 7)
    found = result(make().eval(), x, mode)
    program = lowered(found)
    steps = [name for name in program.delegation.rows if "_hh_" in name or "_hr_" in name]
    assert len(steps) == {"lstm": 4, "gru": 2, "relu": 1}[kind]
    assert program.delegation.outside.count("scan") == {"lstm": 2, "gru": 2, "relu": 1}[kind]
    for one, other in zip(leaves(program(x)), leaves(found.converted(x)), strict=True):
        assert (one - other).square().mean() <= 1e-7 * other.square().mean()


class Headed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(7, 12), nn.Linear(12, 3)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(self.lstm(x)[0])
        return found


@torch.no_grad()
def test_a_layer_that_stays_in_float_is_a_loop_too() -> None:
    torch.manual_seed(0)
    x = torch.randn(50, 2, 7)
    found = result(Headed().eval(), x, DYNAMIC, keep=True)
    program = lowered(found)
    assert program.delegation.outside.count("scan") == 1  # not 50 times its gates
    torch.testing.assert_close(program(x), found.converted(x), rtol=1e-3, atol=1e-3)
