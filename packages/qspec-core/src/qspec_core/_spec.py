"""Quantization specs, and the annotations that place them on the edges and nodes of a graph.

Names and fields are those of PyTorch's PT2E flow, so annotations written for it work unchanged.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.fx import Node

from qspec_core._errors import SpecError

__all__ = [
    "Q_ANNOTATION_KEY",
    "DerivedQuantizationSpec",
    "EdgeOrNode",
    "FixedQParamsQuantizationSpec",
    "QuantizationAnnotation",
    "QuantizationSpec",
    "QuantizationSpecBase",
    "SharedQuantizationSpec",
    "dtype_range",
]

EdgeOrNode = tuple[Node, Node] | Node
"""A quantization point: an input edge `(producer, consumer)`, or a node for its output."""

Q_ANNOTATION_KEY = "quantization_annotation"
"""Key of a node's `QuantizationAnnotation` in `node.meta`."""

_INTEGER_RANGES: Mapping[torch.dtype, tuple[int, int]] = MappingProxyType(
    {
        torch.int8: (-128, 127),
        torch.qint8: (-128, 127),
        torch.uint8: (0, 255),
        torch.quint8: (0, 255),
        torch.int16: (-(2**15), 2**15 - 1),
        torch.uint16: (0, 2**16 - 1),
        torch.int32: (-(2**31), 2**31 - 1),
        torch.qint32: (-(2**31), 2**31 - 1),
        torch.int4: (-8, 7),  # type: ignore[attr-defined]  # torch's stubs leave it out
        torch.uint4: (0, 15),  # type: ignore[attr-defined]  # as above
        torch.quint4x2: (0, 15),
    }
)
_FLOAT8 = (torch.float8_e4m3fn, torch.float8_e5m2)
_CASTS = (torch.float16, torch.bfloat16, torch.float32)
_PER_TENSOR = (torch.per_tensor_affine, torch.per_tensor_symmetric)
_PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric, torch.per_channel_affine_float_qparams)


def dtype_range(dtype: torch.dtype) -> tuple[float, float] | None:
    """Smallest and largest value of a quantized dtype.

    None for float16, bfloat16 and float32: tensors are cast to them, not quantized.

    Raises: SpecError: the dtype cannot hold quantized values.
    """
    if dtype in _INTEGER_RANGES:
        return _INTEGER_RANGES[dtype]
    if dtype in _FLOAT8:
        limits = torch.finfo(dtype)
        return limits.min, limits.max
    if dtype in _CASTS:
        return None
    raise SpecError(
        "the dtype of a quantization spec cannot hold quantized values",
        found=dtype,
        expected=", ".join(str(known) for known in (*_INTEGER_RANGES, *_FLOAT8, *_CASTS)),
        remedy="choose one of the dtypes listed",
    )


class QuantizationSpecBase:
    """Base class of the four kinds of spec."""


class _Ranged:
    """Range and checks of the specs that have a dtype."""

    dtype: torch.dtype
    quant_min: int | None
    quant_max: int | None
    qscheme: torch.qscheme | None

    @property
    def range(self) -> tuple[float, float] | None:
        """Quantized range: the limits given, else those of the dtype; None for a cast."""
        natural = dtype_range(self.dtype)
        if natural is None:
            return None
        low, high = natural
        return (low if self.quant_min is None else self.quant_min, high if self.quant_max is None else self.quant_max)

    def _check_range(self) -> None:
        natural, effective = dtype_range(self.dtype), self.range
        if natural is None or effective is None:
            if self.quant_min is not None or self.quant_max is not None:
                raise SpecError(
                    f"{type(self).__name__} gives a range to a dtype that is reached by a cast",
                    found=f"dtype={self.dtype}, quant_min={self.quant_min}, quant_max={self.quant_max}",
                    remedy="leave quant_min and quant_max out, or choose an integer dtype",
                )
            return
        if effective[0] >= effective[1]:
            raise SpecError(
                f"{type(self).__name__} has an empty range",
                found=f"quant_min={effective[0]}, quant_max={effective[1]}",
                expected="quant_min < quant_max",
                remedy="give the smaller limit as quant_min; a limit of None is that of the dtype",
            )
        if effective[0] < natural[0] or effective[1] > natural[1]:
            raise SpecError(
                f"{type(self).__name__} has a range outside its dtype",
                found=f"quant_min={effective[0]}, quant_max={effective[1]}",
                expected=f"within {natural[0]}..{natural[1]} of {self.dtype}",
                remedy="narrow the range or choose a wider dtype",
            )

    def _check_axis(self, ch_axis: int | None) -> None:
        if ch_axis is not None and ch_axis < 0:
            raise SpecError(
                f"{type(self).__name__} has a negative ch_axis",
                found=f"ch_axis={ch_axis}",
                expected="0 or more, counted from the first dimension",
                remedy="count the channel axis from the front",
            )
        if self.qscheme in _PER_CHANNEL and ch_axis is None:
            raise SpecError(
                f"{type(self).__name__} has a per-channel scheme and no ch_axis",
                found=f"qscheme={self.qscheme}, ch_axis=None",
                expected="the dimension that holds the channels",
                remedy="give ch_axis: 0 for the weights of linear and convolution",
            )


def _spec_repr(spec: object, names: Sequence[str]) -> str:
    """Repr with the fields that are neither None nor False, in declaration order."""
    shown = [(name, getattr(spec, name)) for name in names]
    return f"{type(spec).__name__}({', '.join(f'{n}={v!r}' for n, v in shown if v is not None and v is not False)})"


@dataclass(frozen=True, repr=False)
class QuantizationSpec(_Ranged, QuantizationSpecBase):
    """How one tensor is quantized: a dtype, and the observer that finds its scale and zero point.

    Args:
        dtype: quantized dtype; float16 and bfloat16 mean a cast, float32 means no change.
        observer_or_fake_quant_ctr: called with this spec's fields as keywords; builds an observer or a fake-quantize.
        quant_min: smallest quantized value; None for the dtype's. `range` gives the resulting limits.
        quant_max: largest quantized value; None for the dtype's.
        qscheme: per tensor or per channel, symmetric or affine.
        ch_axis: dimension of the channels, counted from the front; needed by a per-channel scheme.
        is_dynamic: scale and zero point are computed from each input when the model runs.
    Raises: SpecError: range empty or outside the dtype, ch_axis negative or missing, dtype unknown.
    """

    dtype: torch.dtype
    observer_or_fake_quant_ctr: Callable[..., torch.nn.Module]
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    ch_axis: int | None = None
    is_dynamic: bool = False

    def __post_init__(self) -> None:
        self._check_range()
        self._check_axis(self.ch_axis)

    def __repr__(self) -> str:
        return _spec_repr(self, tuple(self.__dataclass_fields__))


@dataclass(frozen=True, repr=False)
class FixedQParamsQuantizationSpec(_Ranged, QuantizationSpecBase):
    """Quantize a tensor with a fixed scale and zero point: the output of a sigmoid, for example.

    Args:
        dtype: quantized dtype.
        scale: real value of one quantized step; finite and positive.
        zero_point: quantized value that stands for 0.0.
        quant_min: smallest quantized value; None for the dtype's.
        quant_max: largest quantized value; None for the dtype's.
        qscheme: per-tensor scheme.
        is_dynamic: not used; part of PT2E's signature.
    Raises: SpecError: range empty or outside the dtype, scale not finite and positive, zero point outside the range.
    """

    dtype: torch.dtype
    scale: float
    zero_point: int
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    is_dynamic: bool = False

    def __post_init__(self) -> None:
        self._check_range()
        if not 0.0 < self.scale < float("inf"):
            raise SpecError(
                "FixedQParamsQuantizationSpec has a scale that is not finite and positive",
                found=f"scale={self.scale}",
                remedy="give the real value of one quantized step",
            )
        limits = self.range
        if limits is not None and not limits[0] <= self.zero_point <= limits[1]:
            raise SpecError(
                "FixedQParamsQuantizationSpec has a zero point outside its range",
                found=f"zero_point={self.zero_point}",
                expected=f"{limits[0]}..{limits[1]}",
                remedy="give the quantized value that stands for 0.0",
            )

    def __repr__(self) -> str:
        return _spec_repr(self, tuple(self.__dataclass_fields__))


@dataclass(frozen=True)
class SharedQuantizationSpec(QuantizationSpecBase):
    """Use the scale and zero point of another point.

    Args:
        edge_or_node: the other point; it must have a spec. Its position in the graph does not matter.
    """

    edge_or_node: EdgeOrNode


@dataclass(frozen=True, repr=False)
class DerivedQuantizationSpec(_Ranged, QuantizationSpecBase):
    """Compute scale and zero point from those of other points: for a bias, for example.

    Args:
        derived_from: the points to derive from; stored as a tuple.
        derive_qparams_fn: takes the observers of `derived_from`, in order; returns `(scale, zero_point)` as tensors.
        dtype: quantized dtype.
        quant_min: smallest quantized value; None for the dtype's.
        quant_max: largest quantized value; None for the dtype's.
        qscheme: per tensor or per channel.
        ch_axis: dimension of the channels; needed by a per-channel scheme.
        is_dynamic: not used; part of PT2E's signature.
    Raises: SpecError: range empty or outside the dtype, ch_axis negative or missing, `derived_from` empty.
    """

    derived_from: Sequence[EdgeOrNode]
    derive_qparams_fn: Callable[[Sequence[torch.nn.Module]], tuple[Tensor, Tensor]]
    dtype: torch.dtype
    quant_min: int | None = None
    quant_max: int | None = None
    qscheme: torch.qscheme | None = None
    ch_axis: int | None = None
    is_dynamic: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "derived_from", tuple(self.derived_from))
        if not self.derived_from:
            raise SpecError(
                "DerivedQuantizationSpec derives from 0 points",
                found="derived_from=()",
                expected="one point or more",
                remedy="name the points whose scales the function needs",
            )
        self._check_range()
        self._check_axis(self.ch_axis)

    def __repr__(self) -> str:
        return _spec_repr(self, tuple(self.__dataclass_fields__))


@dataclass
class QuantizationAnnotation:
    """The specs that a quantizer sets at one node. Mutable, since quantizers fill it in steps.

    Args:
        input_qspec_map: spec of each input edge, by the producer; edges without a spec stay in float.
        output_qspec: spec of the node's output; None leaves it in float.
        allow_implicit_sharing: points of this node may join points on the same tensor that have an equal spec.
        _annotated: whether a quantizer has annotated this node; the name is PT2E's.
        custom: for the quantizer's own use; qspec does not read it.
    """

    input_qspec_map: dict[Node, QuantizationSpecBase | None] = field(default_factory=dict)
    output_qspec: QuantizationSpecBase | None = None
    allow_implicit_sharing: bool = True
    _annotated: bool = False
    custom: dict[str, Any] = field(default_factory=dict)
