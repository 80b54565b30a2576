"""A device with every layer that can have a batch norm, for the tests of training."""

from typing import Any

import torch
from core_support import RELU, layer, table
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    QuantizationConfig,
    QuantizationSpec,
    TableQuantizer,
    move_exported_model_to_eval,
    move_exported_model_to_train,
)
from qspec_core.fake_quantize import FakeQuantize
from qspec_core.patterns import DELEGATED, Flow, Outputs, PatternTable, Row, activation, bias, weight

aten = torch.ops.aten


def _transposed(name: str, target: Any) -> Row:  # an operator overload, which torch leaves untyped
    operands = (activation("input"), weight("weight", ch_axis=1), bias("bias"))
    return Row(name, target, operands, Flow.STARTS, DELEGATED, chains=((RELU,), ()))


ROWS = (
    *(layer(f"conv{n}d", getattr(aten, f"conv{n}d").default) for n in (1, 2, 3)),
    _transposed("conv_transpose1d", aten.conv_transpose1d.default),
    _transposed("conv_transpose2d", aten.conv_transpose2d.input),
    layer("linear", aten.linear.default),
    Row("max_pool2d", aten.max_pool2d.default, (activation("self"),), Flow.SHARES, DELEGATED),
)
TABLE: PatternTable = table(ROWS, Outputs.ALWAYS)

ACT = QuantizationSpec(
    torch.uint8, FakeQuantize.with_args(observer=MovingAverageMinMaxObserver), 0, 255, torch.per_tensor_affine
)
PER_CHANNEL = QuantizationSpec(
    torch.int8,
    FakeQuantize.with_args(observer=MovingAveragePerChannelMinMaxObserver, averaging_constant=1.0),
    -127,
    127,
    torch.per_channel_symmetric,
    ch_axis=0,
)
PER_TENSOR = QuantizationSpec(
    torch.int8,
    FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, averaging_constant=1.0),
    -127,
    127,
    torch.per_tensor_symmetric,
)
CONFIG = QuantizationConfig(ACT, ACT, PER_CHANNEL, None, is_qat=True)


def qat_quantizer(config: QuantizationConfig = CONFIG) -> TableQuantizer:
    return TableQuantizer(TABLE).set_global(config)


def exported(model: nn.Module, *inputs: Tensor, decomposed: bool = False) -> GraphModule:
    """The exported graph of a model in the mode it is in."""
    program = torch.export.export(model, inputs)
    module = (program.run_decompositions() if decomposed else program).module()
    assert isinstance(module, GraphModule)
    return module


def train(module: GraphModule, inputs: Tensor, *, steps: int = 3, lr: float = 0.05) -> list[float]:
    """Train for a few steps towards 1 with noisy inputs, and leave the module in evaluation mode."""
    move_exported_model_to_train(module)
    optimizer = torch.optim.SGD(module.parameters(), lr)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(steps):
        noisy = inputs + 0.1 * torch.randn(inputs.shape, generator=generator)
        loss = (module(noisy) - 1).square().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    move_exported_model_to_eval(module)
    return losses
