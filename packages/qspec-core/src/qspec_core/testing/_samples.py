"""Sample calls of operators, for the smallest module that exercises a row."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from qspec_core._quantizer import QuantizationConfig
from qspec_core._torch import OpOverload
from qspec_core.patterns import Mode

__all__ = ["SAMPLES", "ErrorRule", "Integers", "Operands", "Sample", "Samples", "merge_samples"]

aten = torch.ops.aten

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Integers:
    """An operand of integers, such as the indices of an embedding.

    Args:
        shape: its shape.
        below: its values are in 0..below - 1.
    """

    shape: Shape
    below: int


@dataclass(frozen=True)
class Operands:
    """A call of an operator, as an error rule sees it.

    Args:
        operator: the operator.
        values: value of each argument, by its name in the schema, defaults included.
        errors: for each floating-point tensor among them, a bound on the error of each element, in float64. For a list
            of tensors, a list.
    """

    operator: OpOverload
    values: Mapping[str, Any]  # of any type that an operator takes
    errors: Mapping[str, Any]  # a tensor, or a list of tensors

    def call(self, replaced: Mapping[str, Any]) -> Any:  # of any type that an operator returns
        """Call the operator in float64, with some arguments replaced."""
        return self.operator(**{name: _double(value) for name, value in {**self.values, **replaced}.items()})


def _double(value: Any) -> Any:  # as in Operands
    if isinstance(value, Tensor):
        return value.double() if value.is_floating_point() else value
    return type(value)(map(_double, value)) if isinstance(value, list | tuple) else value


ErrorRule = Callable[[Operands], Any]
"""Computes a bound on the error of each element of an operator's result: a float64 tensor."""


def _all_modes() -> frozenset[Mode]:
    return frozenset(Mode)


@dataclass(frozen=True)
class Sample:
    """The smallest useful call of an operator.

    For a post-op or an absorbed operator only the constants are used: its first tensor is the value of the chain, and a
    second tensor has that value's shape.

    Args:
        tensors: shape of each tensor operand by its name in the schema, in order; a tuple of shapes for a list.
        constants: the other arguments, by name; arguments left out have the schema's defaults.
        name: part of the name of a case, to distinguish several samples of one operator.
        error: the error rule of the operator, if core has none.
        dtype: of its floating-point tensors.
        modes: the modes to test it in.
        config: quantize with this configuration; None for the backend's default. A form that a row takes and the
            default does not use, such as weights in groups, needs a sample of its own.
    """

    tensors: Mapping[str, Shape | tuple[Shape, ...] | Integers]
    constants: Mapping[str, Any] = field(default_factory=dict)  # of any type that an operator takes
    name: str = ""
    error: ErrorRule | None = None
    dtype: torch.dtype = torch.float32
    modes: frozenset[Mode] = field(default_factory=_all_modes)
    config: QuantizationConfig | None = None


Samples = Mapping[OpOverload, Sample | Sequence[Sample]]
"""Samples by operator. Those of a vendor replace those of core."""


def _conv(rank: int) -> tuple[Sample, ...]:
    """A plain convolution, and a grouped, strided one without bias."""
    image = (2, 4, *(6,) * rank)
    plain = {"input": image, "weight": (4, 4, *(3,) * rank), "bias": (4,)}
    grouped = {"input": image, "weight": (8, 1, *(3,) * rank)}
    geometry = {"stride": [2] * rank, "padding": [1] * rank, "groups": 4}
    return Sample(plain, {"padding": [1] * rank}), Sample(grouped, geometry, name="depthwise, strided, no bias")


def _transposed(rank: int) -> Sample:
    tensors = {"input": (2, 4, *(4,) * rank), "weight": (4, 3, *(3,) * rank), "bias": (3,)}
    return Sample(tensors, {"stride": [2] * rank})


def _unary(*shape: int, **constants: Any) -> Sample:  # as in Sample
    return Sample({"self": shape}, constants)


_IMAGE = (2, 4, 6, 6)
_TWO = Sample({"self": _IMAGE, "other": _IMAGE})
_PLAIN_UNARY = (
    *(aten.relu, aten.relu6, aten.gelu, aten.silu, aten.mish, aten.hardswish, aten.hardsigmoid, aten.leaky_relu),
    *(aten.elu, aten.sigmoid, aten.tanh, aten.abs, aten.neg, aten.contiguous, aten.clone),
)

SAMPLES: Samples = MappingProxyType(
    {
        **{packet.default: _unary(*_IMAGE) for packet in _PLAIN_UNARY},
        **{getattr(aten, f"conv{rank}d").default: _conv(rank) for rank in (1, 2, 3)},
        aten.conv_transpose1d.default: _transposed(1),
        aten.conv_transpose2d.input: _transposed(2),
        aten.conv_transpose3d.input: _transposed(3),
        aten.linear.default: (
            Sample({"input": (5, 8), "weight": (6, 8), "bias": (6,)}),
            Sample({"input": (2, 3, 8), "weight": (6, 8)}, name="rank 3, no bias"),
        ),
        aten.matmul.default: Sample({"self": (2, 3, 4), "other": (2, 4, 5)}),
        aten.bmm.default: Sample({"self": (2, 3, 4), "mat2": (2, 4, 5)}),
        aten.embedding.default: Sample({"weight": (10, 4), "indices": Integers((2, 3), below=10)}),
        aten.add.Tensor: _TWO,
        aten.sub.Tensor: _TWO,
        aten.mul.Tensor: _TWO,
        aten.maximum.default: _TWO,
        aten.minimum.default: _TWO,
        aten.prelu.default: Sample({"self": _IMAGE, "weight": (1,)}),
        aten.hardtanh.default: _unary(*_IMAGE, min_val=-0.5, max_val=1.0),
        aten.clamp.default: _unary(*_IMAGE, min=-0.5, max=1.0),
        aten.max_pool2d.default: _unary(*_IMAGE, kernel_size=[3, 3], stride=[2, 2], padding=[1, 1]),
        aten.avg_pool2d.default: _unary(*_IMAGE, kernel_size=[2, 2]),
        aten.adaptive_avg_pool2d.default: _unary(*_IMAGE, output_size=[1, 1]),
        aten.mean.dim: _unary(*_IMAGE, dim=[2, 3], keepdim=True),
        aten.mean.default: _unary(*_IMAGE),
        aten.cat.default: Sample({"tensors": (_IMAGE, _IMAGE)}, {"dim": 1}),
        aten.pad.default: _unary(*_IMAGE, pad=[1, 2, 1, 0]),
        aten.view.default: _unary(2, 4, 6, size=[2, 24]),
        aten.reshape.default: _unary(2, 4, 6, shape=[2, 24]),
        aten.flatten.using_ints: _unary(*_IMAGE, start_dim=1),
        aten.unflatten.int: _unary(2, 4, 6, dim=1, sizes=[2, 2]),
        aten.permute.default: _unary(*_IMAGE, dims=[0, 2, 3, 1]),
        aten.transpose.int: _unary(2, 3, 4, dim0=1, dim1=2),
        aten.squeeze.default: _unary(2, 1, 4),
        aten.squeeze.dim: _unary(2, 1, 4, dim=1),
        aten.squeeze.dims: _unary(2, 1, 4, dim=[1]),
        aten.unsqueeze.default: _unary(2, 3, 4, dim=-1),
        aten.expand.default: _unary(2, 1, 4, size=[2, 3, 4]),
        aten.slice.Tensor: _unary(*_IMAGE, dim=1, start=1, end=3),
        aten.select.int: _unary(2, 3, 4, dim=1, index=1),
    }
)
"""Core's samples: the operators that most devices run."""


def merge_samples(own: Samples | None) -> Mapping[OpOverload, tuple[Sample, ...]]:
    """Core's samples, replaced by a vendor's if it has some for the operator."""
    merged = {**SAMPLES, **(own if own is not None else {})}
    return {operator: (found,) if isinstance(found, Sample) else tuple(found) for operator, found in merged.items()}
