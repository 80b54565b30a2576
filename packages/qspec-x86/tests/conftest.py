"""Converted graphs written by hand: every scale a power of two, so that float arithmetic on them is exact."""

from collections.abc import Iterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import qspec_core.ops

decomposed = torch.ops.quantized_decomposed


@pytest.fixture(autouse=True)
def _repeatable() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@dataclass(frozen=True)
class Grid:
    """Parameters of a quantized tensor, with the arithmetic of quantizing written out."""

    scale: float = 2.0**-5
    zero_point: int = 0
    low: int = 0
    high: int = 255
    dtype: torch.dtype = torch.uint8

    def __call__(self, x: Tensor) -> Tensor:
        """Quantize and dequantize, in the operators of a converted graph."""
        parameters = (self.scale, self.zero_point, self.low, self.high, self.dtype)
        integers = decomposed.quantize_per_tensor.default(x, *parameters)
        result: Tensor = decomposed.dequantize_per_tensor.default(integers, *parameters)
        return result

    def values(self, x: Tensor) -> Tensor:
        """The same in float64: the reference."""
        integers = torch.clamp(torch.round(x.double() / self.scale) + self.zero_point, self.low, self.high)
        return (integers - self.zero_point) * self.scale


class Weight(nn.Module):
    """An int8 weight with one scale, a power of two, for each output channel: each index of dimension `axis`."""

    integers: Tensor
    scales: Tensor
    zero_points: Tensor

    def __init__(self, *shape: int, largest: int = 64, axis: int = 0) -> None:
        super().__init__()
        self.axis = axis
        self.register_buffer("integers", torch.randint(-largest, largest + 1, shape, dtype=torch.int8))
        self.register_buffer("scales", 2.0 ** -(6 + torch.arange(shape[axis]) % 3).float())
        self.register_buffer("zero_points", torch.zeros(shape[axis], dtype=torch.int64))

    def forward(self) -> Tensor:
        """Dequantize, in the operator of a converted graph."""
        parameters = (self.scales, self.zero_points, self.axis, -128, 127, torch.int8)
        result: Tensor = decomposed.dequantize_per_channel.default(self.integers, *parameters)
        return result

    def values(self) -> Tensor:
        """The same in float64: the reference."""
        shape = [1] * self.integers.dim()
        shape[self.axis] = -1
        return self.integers.double() * self.scales.double().reshape(shape)


def export(module: nn.Module, *example: Tensor, dynamic_shapes: Any = None) -> GraphModule:
    """Export a module that is written in the operators of a converted graph."""
    assert qspec_core.ops.QUANTIZE is decomposed.quantize_per_tensor.default
    with torch.no_grad():
        graph = torch.export.export(module.eval(), example, dynamic_shapes=dynamic_shapes).module()
    assert isinstance(graph, GraphModule)
    return graph


def count(module: GraphModule, part: str) -> int:
    """How many calls of the graph have `part` in the name of what they call."""
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    return sum(part in getattr(target, "__qualname__", "") + str(target) for target in targets)


@pytest.fixture
def hand() -> SimpleNamespace:
    """The tools above. With importlib's import mode a test cannot import them."""
    return SimpleNamespace(Grid=Grid, Weight=Weight, export=export, count=count)
