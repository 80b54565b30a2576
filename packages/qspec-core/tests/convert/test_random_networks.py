"""Random small networks: the error of the quantized one stays under what its step sizes allow, layer by layer.

Quantizing x with step s over a range that holds the float value moves it by at most s: half a step of rounding, and
half a step more where the rounded zero point cuts the range. Clamping to that range never moves a disturbed value away
from the float one. So an error bound e becomes e + s at a quantized tensor, |W| (e + s) + (s_w / 2) (|x| + e + s)
after a layer with weights of step s_w per output channel, stays as it is under relu and max pooling, and adds up in
sums.
"""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch.nn.functional as F
from core_support import ACT, CONFIG, affine_parameters, export, quantized, quantizer, sqnr, symmetric_scales
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from qspec_core import CoverageStatus, coverage, prepare_pt2e

SETTINGS = settings(max_examples=25, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])


@dataclass
class Bounded:
    """A float value and how far the quantized network may be from it, element by element."""

    value: Tensor
    error: Tensor

    def quantized(self) -> "Bounded":
        return Bounded(self.value, self.error + affine_parameters(self.value)[0])

    def through(self, layer: nn.Linear | nn.Conv2d) -> "Bounded":
        x = self.quantized()
        step = symmetric_scales(layer.weight).expand_as(layer.weight) / 2
        options = {"padding": layer.padding, "stride": layer.stride} if isinstance(layer, nn.Conv2d) else {}
        product: Callable[..., Tensor] = F.conv2d if isinstance(layer, nn.Conv2d) else F.linear
        error = product(x.error, layer.weight.abs(), **options) + product(x.value.abs() + x.error, step, **options)
        return Bounded(layer(self.value), error)

    def mapped(self, function: Callable[[Tensor], Tensor]) -> "Bounded":
        return Bounded(function(self.value), function(self.error))


class Network(nn.Module):
    """Layers in a row, with sums over those of equal shape in between. `plan` names each step."""

    def __init__(self, plan: list[str], channels: list[int], images: bool) -> None:
        super().__init__()
        self.plan = plan
        self.layers = nn.ModuleList()
        width = 3
        for step, wanted in zip(plan, channels, strict=True):
            outputs = width if step == "residual" else wanted
            if step in ("layer", "residual"):
                layer = nn.Conv2d(width, outputs, 3, padding=1) if images else nn.Linear(width, outputs)
                self.layers.append(layer)
                width = outputs

    def forward(self, x: Any) -> Any:  # a tensor, or a Bounded in the derivation of the bound
        bounded = isinstance(x, Bounded)
        layers = iter(self.layers)
        for step in self.plan:
            if step == "relu":
                x = x.mapped(F.relu) if bounded else F.relu(x)
            elif step == "pool":
                x = x.mapped(pool) if bounded else pool(x)
            elif step == "tanh":
                x = Bounded(torch.tanh(x.value), x.error) if bounded else torch.tanh(x)
            else:
                layer = next(layers)
                y = x.through(layer) if bounded else layer(x)
                x = y if step == "layer" else summed(x, y) if bounded else x + y
        return x


def pool(x: Tensor) -> Tensor:
    return F.max_pool2d(x, 2, 1, 1) if x.dim() == 4 else x


def summed(x: Bounded, y: Bounded) -> Bounded:
    x, y = x.quantized(), y.quantized()
    return Bounded(x.value + y.value, x.error + y.error)


@st.composite
def networks(draw: st.DrawFn) -> tuple[Network, Tensor]:
    images = draw(st.booleans())
    plan = draw(st.lists(st.sampled_from(["layer", "residual", "relu", "pool", "tanh"]), min_size=1, max_size=7))
    plan = ["layer", *plan]
    channels = [draw(st.integers(1, 6)) for _ in plan]
    torch.manual_seed(draw(st.integers(0, 2**16)))
    shape = (2, 3, 6, 6) if images else (4, 3)
    return Network(plan, channels, images).eval(), torch.randn(shape) * draw(st.sampled_from([0.1, 1.0, 30.0]))


@SETTINGS
@given(networks())
def test_error_stays_under_the_bound_of_the_step_sizes(case: tuple[Network, Tensor]) -> None:
    model, x = case
    with torch.no_grad():
        found = quantized(export(model, x), (x,))(x)
        bound = model(Bounded(x, torch.zeros_like(x)))
        want = model(x)
    slack = 1e-5 * (1 + want.abs().max())  # float32 sums in another order
    assert torch.all((found - want).abs() <= bound.error + slack)
    if want.any():
        assert sqnr(want, found) >= sqnr(want, want + bound.error + slack)


@SETTINGS
@given(networks())
def test_coverage_counts_every_float_operator_exactly_once(case: tuple[Network, Tensor]) -> None:
    model, x = case
    exported = export(model, x)
    entries = coverage(prepare_pt2e(exported, quantizer())).entries
    names = [node.name for node in exported.graph.nodes if node.op == "call_function"]
    assert sorted(entry.node for entry in entries) == sorted(names)  # these networks compute floats only
    assert all(bool(entry.row) != bool(entry.code) for entry in entries)
    layers = [entry for entry in entries if entry.is_layer]
    assert len(layers) == len(model.layers)
    assert all(entry.status is CoverageStatus.QUANTIZED for entry in layers)


def test_bound_notices_coarser_steps() -> None:
    """The bound is worth something: a network whose activations have 16 steps in place of 256 breaks it."""
    model, x = Network(["layer"], [4], images=False).eval(), torch.randn(64, 3)
    coarse = replace(CONFIG, input_activation=replace(ACT, quant_max=15))
    with torch.no_grad():
        error = (quantized(export(model, x), (x,), config=coarse)(x) - model(x)).abs()
        assert torch.any(error > model(Bounded(x, torch.zeros_like(x))).error)
