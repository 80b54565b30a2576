"""Linear layers between float operators, which the default makes dynamic in static mode."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from xnnpack_support import lowered, sqnr

import qspec_core as qspec
from qspec_core.lowering import quantized_value
from qspec_xnnpack import BACKEND, XNNPACKQuantizer, get_symmetric_quantization_config

aten = torch.ops.aten


class Block(nn.Module):
    """A transformer's layer with an outlier in one channel, as trained ones have."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.wide, self.narrow = nn.LayerNorm(16), nn.Linear(16, 32), nn.Linear(32, 16)
        with torch.no_grad():
            self.narrow.bias[0] = 200

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.narrow(F.gelu(self.wide(self.norm(x))))
        return x + found


class Images(nn.Module):
    """A convolutional network: its linear layers read integers."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.first, self.head = nn.Conv2d(3, 8, 3), nn.Linear(8, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.head(torch.relu(self.first(torch.relu(self.layer(x)).mean((2, 3)))))
        return found


def dynamic_layers(result: qspec.Result) -> list[bool]:
    found = []
    for node in result.converted.graph.find_nodes(op="call_function", target=aten.linear.default):
        value = quantized_value(node.args[0])
        found.append(value is not None and value.is_dynamic)
    return found


def test_linear_layers_between_floats_are_dynamic() -> None:
    x = torch.randn(4, 16)
    model = Block().eval()
    result = qspec.quantize(model, (x,), calibration=[(x,)], backend=BACKEND)
    assert dynamic_layers(result) == [True, True]
    static = XNNPACKQuantizer(element_wise_starts=False)
    static.set_global(get_symmetric_quantization_config(is_per_channel=True))
    other = qspec.quantize(model, (x,), calibration=[(x,)], backend=BACKEND, quantizer=static)
    assert dynamic_layers(other) == [False, False]
    assert [e.remarks for e in result.coverage.layers] == [("dynamic, between float operators",)] * 2
    assert [e.remarks for e in other.coverage.layers] == [(), ()]
    assert "  2 x aten.linear.default: quantized, dynamic, between float operators" in str(result.coverage)
    with torch.no_grad():
        # Without the outlier, which any range holds.
        real, found, less = (run(x)[:, 1:] for run in (model, lowered(result), lowered(other)))
    assert sqnr(real, found) > 35
    assert sqnr(real, less) < 20


def test_linear_layers_that_read_integers_stay_static() -> None:
    x = torch.randn(1, 3, 8, 8)
    result = qspec.quantize(Images().eval(), (x,), calibration=[(x,)], backend=BACKEND)
    assert dynamic_layers(result) == [False, False]


@pytest.mark.parametrize("mode", ["static", "dynamic"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_half_precision_runs_or_is_declined_with_the_reason(mode: str, dtype: torch.dtype) -> None:
    x = torch.randn(4, 16, dtype=dtype)
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 8)).to(dtype).eval()
    calibration = [(x,)] if mode == "static" else None
    if mode == "static" and dtype is torch.float16:
        result = qspec.quantize(model, (x,), calibration=calibration, backend=BACKEND)
        with torch.no_grad():
            assert sqnr(model(x).float(), lowered(result)(x).float()) > 30
        return
    with pytest.raises(qspec.NothingQuantizedError, match=str(dtype)):
        qspec.quantize(model, (x,), calibration=calibration, backend=BACKEND, mode=mode)


class Masked(nn.Module):
    """Attention written out, with a mask of -inf that is added."""

    def __init__(self, *, computed: bool) -> None:
        super().__init__()
        self.layer, self.computed = nn.Linear(8, 8), computed
        self.register_buffer("hidden", torch.ones(8, 8).triu(1).bool())
        self.register_buffer("mask", torch.zeros(8, 8).masked_fill(torch.ones(8, 8).triu(1).bool(), -torch.inf))

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.layer(x)
        assert isinstance(self.hidden, Tensor)
        assert isinstance(self.mask, Tensor)
        mask = torch.zeros(8, 8).masked_fill(self.hidden, -torch.inf) if self.computed else self.mask
        return torch.softmax(found @ found.transpose(-1, -2) + mask, -1) @ found


@pytest.mark.parametrize("computed", [False, True])
def test_an_infinite_mask_leaves_its_sum_in_float(computed: bool) -> None:
    x = torch.randn(2, 8, 8)
    quantizer = XNNPACKQuantizer().set_global(get_symmetric_quantization_config(is_per_channel=True))
    result = qspec.quantize(
        Masked(computed=computed).eval(), (x,), calibration=[(x,)], backend=BACKEND, quantizer=quantizer
    )
    reasons = {entry.operator: entry.detail for entry in result.coverage.skipped}
    assert "infinite" in reasons["aten.add.Tensor"]
    with torch.no_grad():
        assert sqnr(result.converted(x), lowered(result)(x)) > 45


class Counting(nn.Module):
    """A buffer that `forward` writes to."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.register_buffer("mean", torch.zeros(1, 8))

    def forward(self, x: Tensor) -> Tensor:
        assert isinstance(self.mean, Tensor)
        self.mean.mul_(0.5).add_(x.mean(0, keepdim=True))
        found: Tensor = self.layer(x + self.mean)
        return found


def test_buffers_start_from_their_own_values() -> None:
    """Calibration runs the model several times; the program starts where the float model does."""
    batches = [(torch.randn(4, 8) + 2,) for _ in range(4)]
    model = Counting().eval()
    result = qspec.quantize(model, batches[0], calibration=batches, backend=BACKEND)
    program = lowered(result)
    for batch in batches:
        with torch.no_grad():
            assert sqnr(model(*batch), program(*batch)) > 35
