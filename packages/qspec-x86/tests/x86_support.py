"""Converted graphs written by hand. Every scale is a power of two, so that float arithmetic on them is exact."""

import itertools
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import qspec_core.ops
from qspec_core import Quantizer, convert_pt2e, prepare_pt2e
from qspec_x86 import lower_eager, lower_portable

decomposed = torch.ops.quantized_decomposed

Lower = Callable[[GraphModule], GraphModule]
FORMS: list[Lower] = [lower_eager, lower_portable]
"""The two forms of a lowered graph."""


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
    """Export a module, such as one that is written in the operators of a converted graph."""
    assert qspec_core.ops.QUANTIZE is decomposed.quantize_per_tensor.default
    with torch.no_grad():
        graph = torch.export.export(module.eval(), example, dynamic_shapes=dynamic_shapes).module()
    assert isinstance(graph, GraphModule)
    return graph


def convert(
    quantizer: Quantizer,
    model: nn.Module,
    *example: Tensor,
    batches: Iterable[tuple[Tensor, ...]] | None = None,
    dynamic_shapes: Any = None,
) -> GraphModule:
    """Export, prepare, calibrate on the batches (the example if None) and convert."""
    prepared = prepare_pt2e(export(model, *example, dynamic_shapes=dynamic_shapes), quantizer)
    with torch.no_grad():
        for batch in [example] if batches is None else batches:
            prepared(*batch)
    return convert_pt2e(prepared)


def overflows(row: np.ndarray, input_max: int) -> bool:
    """Whether some two products with inputs of 0..input_max leave 16 bits, by trying the extremes of every pair."""
    pairs = itertools.combinations(row.astype(int), 2)
    sums = [a * x + b * y for a, b in pairs for x in (0, input_max) for y in (0, input_max)]
    return any(not -(2**15) <= total < 2**15 for total in sums)


def count(module: GraphModule, part: str) -> int:
    """How many calls of the graph have `part` in the name of what they call."""
    targets = [node.target for node in module.graph.nodes if node.op == "call_function"]
    return sum(part in getattr(target, "__qualname__", "") + str(target) for target in targets)


def sqnr(reference: Tensor, found: Tensor) -> float:
    """Signal-to-noise ratio of quantization, in dB: 10 log10(sum(ref^2) / sum((ref - found)^2)); 300 where equal."""
    noise = (reference.double() - found.double()).pow(2).sum()
    return float(10 * torch.log10(reference.double().pow(2).sum() / noise.clamp(min=1e-30)).clamp(max=300.0))


@contextmanager
def without_inductors_warnings() -> Iterator[None]:
    """Inductor's own warnings differ between versions of torch."""
    torch._dynamo.reset()
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
