"""Quantization-aware training with the configurations of x86: trained, converted, lowered, and compared."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import (
    QuantizationConfig,
    convert_pt2e,
    coverage,
    move_exported_model_to_eval,
    move_exported_model_to_train,
    prepare_pt2e,
    prepare_qat_pt2e,
)
from qspec_core.fake_quantize import FakeQuantizeBase, enable_range_learning
from qspec_core.testing import Case, check_case, training_cases
from qspec_x86 import (
    BACKEND,
    LOWERING_KEY,
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
    get_weight_only_quantization_config,
    lower_eager,
)


class Net(nn.Module):
    """A layer of each family that has a kernel, with batch norms, a residual sum and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU())
        self.depthwise = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.BatchNorm2d(8), nn.ReLU6())
        self.point = nn.Sequential(nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8))
        self.up = nn.Sequential(nn.ConvTranspose2d(8, 4, 2, stride=2, bias=False), nn.BatchNorm2d(4), nn.ReLU())
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(4, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 5))

    def forward(self, x: Tensor) -> Tensor:
        y = self.stem(x)
        y = torch.relu(y + self.point(self.depthwise(y)))
        result: Tensor = self.head(self.up(y).mean((2, 3)))
        return result


def images() -> Tensor:
    return torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def exported(model: nn.Module, *inputs: Tensor) -> GraphModule:
    module = torch.export.export(model, inputs).module()
    assert isinstance(module, GraphModule)
    return module


def train(prepared: GraphModule, x: Tensor, learned: bool = False) -> None:
    """Train for a few steps, and leave the module in evaluation mode."""
    move_exported_model_to_train(prepared)
    prepared(x)
    if learned:
        prepared.apply(enable_range_learning)
    optimizer = torch.optim.SGD(prepared.parameters(), 0.02)
    for _ in range(3):
        loss = (prepared(x) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    move_exported_model_to_eval(prepared)


@pytest.mark.parametrize("target", ["vnni", "any"])
@pytest.mark.parametrize(
    "options", [{}, {"is_dynamic": True}, {"reduce_range": True}, {"weight_bits": 4}, {"learnable": True}], ids=str
)
def test_trained_converted_and_lowered(options: dict[str, Any], target: str) -> None:
    config = get_default_x86_inductor_quantization_config(is_qat=True, **options)
    prepared = prepare_qat_pt2e(
        exported(Net().train(), images()), X86InductorQuantizer(target=target).set_global(config)
    )
    # There is no dynamic kernel of transposed convolutions.
    assert len(coverage(prepared).quantized_layers) == (5 if "is_dynamic" in options else 6)
    train(prepared, images(), "learnable" in options)
    with torch.no_grad():
        found = prepared(images())
        converted = convert_pt2e(prepared)
        integers = converted(images())
        lowered = lower_eager(converted, target)(images())
    size = found.abs().max().item()
    # A value at a tie may round to the other side, and its step pass through the layers after it.
    torch.testing.assert_close(integers, found, rtol=0, atol=0.02 * size)
    # Learned scales of weights may be finer than sums of 16 bits allow; lowering for "any" makes them coarser.
    is_coarser = target == "any" and "learnable" in options
    torch.testing.assert_close(lowered, integers, rtol=0, atol=(0.1 if is_coarser else 0.02) * size)


def test_lowered_to_the_kernels_of_post_training() -> None:
    net = Net().train()
    config = get_default_x86_inductor_quantization_config(is_qat=True)
    trained = prepare_qat_pt2e(exported(net, images()), X86InductorQuantizer().set_global(config))
    train(trained, images())
    plain = get_default_x86_inductor_quantization_config()
    after = prepare_pt2e(exported(net.eval(), images()), X86InductorQuantizer().set_global(plain))
    after(images())
    lowered = [lower_eager(convert_pt2e(module), "vnni") for module in (trained, after)]
    kernels = [sorted(str(n.target) for n in m.graph.nodes if n.op == "call_function") for m in lowered]
    assert kernels[0] == kernels[1]
    assert lowered[0].meta[LOWERING_KEY] == lowered[1].meta[LOWERING_KEY]


@pytest.mark.parametrize("group_size", [None, 32])
def test_weights_only(group_size: int | None) -> None:
    net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32)).bfloat16().train()
    x = torch.randn(4, 64).bfloat16()
    config = get_weight_only_quantization_config(group_size, is_qat=True)
    prepared = prepare_qat_pt2e(exported(net, x), X86InductorQuantizer().set_global(config))
    train(prepared, x)
    with torch.no_grad():
        found = prepared(x)
        converted = convert_pt2e(prepared)
        torch.testing.assert_close(converted(x), found, rtol=0, atol=0)
        torch.testing.assert_close(lower_eager(converted, "vnni")(x), found, rtol=0.02, atol=0.02)


@pytest.mark.parametrize("target", ["vnni", "any"])
def test_every_constructor_builds_a_fake_quantize(target: str) -> None:
    configs: list[QuantizationConfig] = [
        get_default_x86_inductor_quantization_config(is_qat=True),
        get_default_x86_inductor_quantization_config(is_qat=True, is_dynamic=True),
    ]
    for config in configs:
        assert config.is_qat
        quantizer = X86InductorQuantizer(target=target).set_global(config)
        prepared = prepare_qat_pt2e(exported(Net().train(), images()), quantizer)
        found = [part for name, part in prepared.named_children() if name.startswith("activation_post_process")]
        assert found
        assert all(isinstance(part, FakeQuantizeBase) for part in found)


@pytest.mark.parametrize("case", training_cases(BACKEND), ids=str)
def test_conformance_in_training(case: Case) -> None:
    check_case(case)
