"""Layers with batch norms after a few steps of training, against the layer folded by hand and the converted graph."""

import copy
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from qat_support import CONFIG, PER_TENSOR, exported, qat_quantizer, train
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import convert_pt2e, coverage, prepare_qat_pt2e

aten = torch.ops.aten
LAYERS: dict[str, Any] = {
    "conv1d": nn.Conv1d,
    "conv2d": nn.Conv2d,
    "conv3d": nn.Conv3d,
    "conv_transpose1d": nn.ConvTranspose1d,
    "conv_transpose2d": nn.ConvTranspose2d,
    "linear": nn.Linear,
}
NORMS: dict[int, Any] = {0: nn.BatchNorm1d, 1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}


@dataclass(frozen=True)
class Case:
    """One layer with a batch norm."""

    kind: str = "conv2d"
    groups: int = 1
    width: int = 2
    bias: bool = True
    stride: int = 1
    padding: int = 0
    dilation: int = 1
    kernel: int = 3
    eps: float = 1e-5
    affine: bool = True
    relu: bool = True
    per_channel: bool = True
    training: bool = True
    decomposed: bool = False
    seed: int = 0

    @property
    def rank(self) -> int:
        return 0 if self.kind == "linear" else int(self.kind[-2])

    def net(self) -> nn.Sequential:
        torch.manual_seed(self.seed)
        channels = self.groups * self.width
        norm = NORMS[self.rank](channels, eps=self.eps, affine=self.affine, momentum=0.3)
        options: dict[str, Any] = {"bias": self.bias}
        if self.rank:
            options |= {"groups": self.groups, "stride": self.stride, "padding": self.padding}
            options |= {"dilation": self.dilation, "kernel_size": self.kernel}
        layer = LAYERS[self.kind](channels, channels, **options)
        if self.affine:
            nn.init.uniform_(norm.weight, -2, 2)
            nn.init.uniform_(norm.bias, -1, 1)
            with torch.no_grad():
                norm.weight[0] = 0.0  # as networks with zero-initialized residual branches start
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
        return nn.Sequential(layer, norm, *([nn.ReLU()] if self.relu else [])).train(self.training)

    def inputs(self) -> Tensor:
        generator = torch.Generator().manual_seed(self.seed)
        return torch.randn(4, self.groups * self.width, *([7, 8, 7][: self.rank]), generator=generator)

    def prepare(self, net: nn.Module) -> GraphModule:
        config = CONFIG if self.per_channel else replace(CONFIG, weight=PER_TENSOR)
        graph = exported(net, self.inputs(), decomposed=self.decomposed)
        return prepare_qat_pt2e(graph, qat_quantizer(config))


def folded_by_hand(case: Case, net: nn.Sequential, prepared: GraphModule, x: Tensor) -> tuple[Tensor, float]:
    """The layer with the batch norm folded in and rounded, in float64 of plain torch, and the step of its output."""
    layer: Any = copy.deepcopy(net[0]).double()
    norm: Any = copy.deepcopy(net[1]).double()
    factor = (norm.running_var + case.eps).rsqrt() * (norm.weight if case.affine else 1.0)
    offset = -norm.running_mean * factor + (norm.bias if case.affine else 0.0)
    observers = {name: part for name, part in prepared.named_children() if name.startswith("activation_post")}
    points = {int(str(n.target).rpartition("_")[2]): n for n in prepared.graph.find_nodes(op="call_module") if n.users}
    by_input = {points[int(name.rpartition("_")[2])].all_input_nodes[0]: part for name, part in observers.items()}
    by_kind: dict[str, Any] = {}
    for source, part in by_input.items():
        role = "input" if source.op == "placeholder" else "weight" if source.target is aten.mul.Tensor else "output"
        by_kind[role] = part
    weight = layer.weight.detach()
    if "transpose" in case.kind:
        repeats = weight.shape[0] // case.groups
        per_row = factor.reshape(case.groups, -1).repeat_interleave(repeats, 0)  # (in, out / groups)
        weight = weight * per_row.reshape(*weight.shape[:2], *[1] * case.rank)
    else:
        weight = weight * factor.reshape(-1, *[1] * (weight.dim() - 1))
    step = by_kind["weight"].scale.double()
    if case.per_channel:
        shape = [1] * weight.dim()
        shape[1 if "transpose" in case.kind else 0] = -1
        step = step.reshape(shape)
    bias = offset + (layer.bias.detach() * factor if case.bias else 0.0)
    layer.weight = nn.Parameter((weight / step).round().clamp(-127, 127) * step)
    layer.bias = nn.Parameter(bias.detach())

    def rounded(value: Tensor, observer: Any) -> Tensor:
        scale, zero = observer.scale.double(), observer.zero_point.double()
        quantized: Tensor = ((value / scale).round() + zero).clamp(0, 255)
        restored: Tensor = (quantized - zero) * scale
        return restored

    result = layer(rounded(x.double(), by_kind["input"]))
    return rounded(result.relu() if case.relu else result, by_kind["output"]), by_kind["output"].scale.item()


def check(case: Case) -> None:
    """Train a case, and compare evaluation with the layer folded by hand and with the converted graph."""
    net = case.net()
    prepared = case.prepare(net)
    assert [entry.status for entry in coverage(prepared) if "norm" in entry.operator] in (["folded"], ["folded"] * 2)
    x = case.inputs()
    train(prepared, x)
    with torch.no_grad():
        found = prepared(x)
        converted = convert_pt2e(prepared)
        integers = converted(x)
    wanted, step = folded_by_hand(case, net, prepared, x)
    assert found.isfinite().all()
    torch.testing.assert_close(found.double(), wanted, rtol=0, atol=1.01 * step)
    torch.testing.assert_close(integers, found, rtol=0, atol=1.01 * step)
    assert (integers != found).float().mean() < 0.01  # rounding of ties only
    assert not converted.graph.find_nodes(op="call_function", target=aten.batch_norm.default)
    assert not converted.graph.find_nodes(op="call_function", target=aten.mul.Tensor)
    assert not any("num_batches_tracked" in name for name in converted.state_dict())


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "none"])
def test_every_layer(kind: str, bias: bool) -> None:
    check(Case(kind, bias=bias))


@pytest.mark.parametrize(
    "case",
    [
        Case("conv_transpose2d", groups=2, width=4),
        Case("conv_transpose1d", groups=4, width=1, bias=False),
        Case("conv2d", decomposed=True),
        Case("linear", decomposed=True),
        Case("conv2d", training=False),
        Case("conv2d", training=False, decomposed=True),
        Case("conv2d", affine=False),
        Case("conv2d", eps=0.5, per_channel=False),
    ],
    ids=str,
)
def test_forms(case: Case) -> None:
    check(case)


@given(
    st.builds(
        Case,
        kind=st.sampled_from(sorted(LAYERS)),
        groups=st.integers(1, 3),
        width=st.integers(1, 3),
        bias=st.booleans(),
        stride=st.integers(1, 2),
        padding=st.integers(0, 2),
        dilation=st.integers(1, 2),
        kernel=st.integers(1, 3),
        eps=st.sampled_from([1e-5, 1e-3, 0.1]),
        affine=st.booleans(),
        relu=st.booleans(),
        per_channel=st.booleans(),
        training=st.booleans(),
        decomposed=st.booleans(),
        seed=st.integers(0, 1000),
    )
)
@settings(max_examples=25, deadline=None, derandomize=True)
def test_any_shape(case: Case) -> None:
    check(case)
