"""Fake-quantizes that take scale and zero point from an observer."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qspec_core._errors import SourceLocation, SpecError
from qspec_core._spec import dtype_range
from qspec_core.fake_quantize._base import FakeQuantizeWithQParams, fake_quantize
from qspec_core.fake_quantize._traced import can_trace, round_to_quantized
from qspec_core.observers import (
    FixedQParamsObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PerChannelMinMaxObserver,
)
from qspec_core.observers._arithmetic import PER_CHANNEL
from qspec_core.observers._base import FLOAT32_EPS, reject_not_finite
from qspec_core.observers._constructor import construct

__all__ = ["FakeQuantize", "FixedQParamsFakeQuantize", "FusedMovingAvgObsFakeQuantize", "build_inner"]


def build_inner(
    owner: type, observer: Callable[..., object], fields: Mapping[str, object]
) -> Any:  # Any: a third party's observer has its own type
    """Build the observer of a fake-quantize.

    Raises: SpecError: the observer has no integer range.
    """
    inner = construct(observer, fields)
    limits = [getattr(inner, name, None) for name in ("quant_min", "quant_max")]
    natural = dtype_range(getattr(inner, "dtype", torch.float32))
    if not isinstance(inner, nn.Module) or not all(isinstance(limit, int) for limit in limits) or natural is None:
        raise SpecError(
            f"{owner.__name__} needs an observer with an integer range",
            found=f"{type(inner).__name__}, dtype={getattr(inner, 'dtype', None)}, range={limits}",
            remedy="give an observer such as MovingAverageMinMaxObserver, with an integer dtype",
        )
    return inner


class FakeQuantize(FakeQuantizeWithQParams):
    """Observes, and rounds to the quantized values of the observed range.

    Buffers: `scale`, float32, and `zero_point`, int32 (float32 for float zero points), (1,) or (channels,); the state
    of the observer under `activation_post_process`.

    Args:
        observer: constructor of the observer.
        quant_min: smallest quantized value; None for the observer's.
        quant_max: largest quantized value; None for the observer's.
        is_dynamic: scale and zero point are those of each input, also while observing is switched off.
        observer_kwargs: further keywords of the observer; those that it does not take are ignored.
    Raises: SpecError: the observer has no integer range, or refuses its arguments.
    """

    def __init__(
        self,
        observer: Callable[..., object] = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = False,
        **observer_kwargs: object,
    ) -> None:
        super().__init__()
        own = {"quant_min": quant_min, "quant_max": quant_max, "is_dynamic": is_dynamic or None}
        self.activation_post_process = build_inner(type(self), observer, {**observer_kwargs, **own})
        inner = self.activation_post_process
        self.quant_min, self.quant_max = inner.quant_min, inner.quant_max
        self.is_dynamic = bool(getattr(inner, "is_dynamic", is_dynamic))
        self.dtype: torch.dtype = inner.dtype
        self.qscheme: torch.qscheme = inner.qscheme
        self.is_per_channel = self.qscheme in PER_CHANNEL
        self.ch_axis: int = inner.ch_axis if self.is_per_channel else -1
        has_float_zero_point = self.qscheme == torch.per_channel_affine_float_qparams
        self.register_buffer("scale", torch.ones(1))
        zero_point = torch.zeros(1, dtype=torch.float32 if has_float_zero_point else torch.int32)
        self.register_buffer("zero_point", zero_point.clamp(self.quant_min, self.quant_max))

    @property
    def where(self) -> SourceLocation | None:
        """Place in the model, stored in the observer, which names it in errors."""
        place: SourceLocation | None = self.activation_post_process.where
        return place

    @where.setter
    def where(self, place: SourceLocation | None) -> None:
        self.activation_post_process.where = place

    @property
    def has_observed(self) -> bool:
        """Whether the observer has seen data."""
        return bool(self.activation_post_process.has_observed)

    def allocate(self, shape: Sequence[int | torch.SymInt]) -> None:
        """Give the buffers their final size, so that a state can be copied to them before the first forward.

        They stay without data. A size that is not known leaves them as they are.

        Args:
            shape: shape of the tensors that will be observed.
        """
        inner = self.activation_post_process
        inner = getattr(inner, "activation_post_process", inner)  # of an observer that changes the scale of another
        channels = shape[self.ch_axis] if self.is_per_channel and -len(shape) <= self.ch_axis < len(shape) else None
        if not isinstance(channels, int) or not isinstance(inner, PerChannelMinMaxObserver) or inner.min_val.numel():
            return
        inner.min_val.resize_(channels).fill_(math.inf)
        inner.max_val.resize_(channels).fill_(-math.inf)
        self.scale.resize_(channels).fill_(1.0)
        zero_point = self.zero_point.item()
        self.zero_point.resize_(channels).fill_(zero_point)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The observer's scale, float32, and zero point, int64 (float32 for float zero points)."""
        qparams: tuple[Tensor, Tensor] = self.activation_post_process.calculate_qparams()
        return qparams

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, of any shape, and return it rounded to quantized values."""
        if x.numel() == 0:
            return x
        if can_trace(self.activation_post_process):
            return self._traced(x)
        if self.is_dynamic or self.observer_enabled.item():
            self.activation_post_process(x)
            self._store_qparams(*self.calculate_qparams())
        if not self.fake_quant_enabled.item():
            return x
        axis = self.ch_axis if self.is_per_channel else None
        return fake_quantize(x, self.scale, self.zero_point, self.quant_min, self.quant_max, axis)

    def _traced(self, x: Tensor) -> Tensor:
        """`forward` in a form that `torch.compile` traces without a graph break."""
        with torch.no_grad():
            observes = self.observer_enabled.bool() | self.is_dynamic
            self.activation_post_process.observe_traced(x, observes)
            for held, newest in zip((self.scale, self.zero_point), self.calculate_qparams(), strict=True):
                held.copy_(torch.where(observes, newest, held))
        return self._rounded(x)

    def _rounded(self, x: Tensor) -> Tensor:
        axis = self.ch_axis if self.is_per_channel else None
        limits, enabled = (self.quant_min, self.quant_max), self.fake_quant_enabled.bool()
        return round_to_quantized(x, (self.scale, self.zero_point), limits, axis, enabled)

    def extra_repr(self) -> str:
        """Range, dtype, parameters and switches."""
        return (
            f"fake_quant_enabled={self.fake_quant_enabled}, observer_enabled={self.observer_enabled}, "
            f"quant_min={self.quant_min}, quant_max={self.quant_max}, dtype={self.dtype}, qscheme={self.qscheme}, "
            f"ch_axis={self.ch_axis}, scale={self.scale}, zero_point={self.zero_point}"
        )


class FixedQParamsFakeQuantize(FakeQuantize):
    """Rounds with a fixed scale and zero point.

    Args:
        observer: constructor of a `FixedQParamsObserver`.
    Raises: SpecError: the constructor builds another observer.
    """

    def __init__(self, observer: Callable[..., object]) -> None:
        super().__init__(observer)
        inner = self.activation_post_process
        if not isinstance(inner, FixedQParamsObserver):
            raise SpecError(
                "FixedQParamsFakeQuantize needs an observer with fixed parameters",
                found=type(inner).__name__,
                expected="FixedQParamsObserver",
                remedy="give FixedQParamsObserver.with_args(scale=..., zero_point=...), or use FakeQuantize",
            )
        self._store_qparams(*inner.calculate_qparams())

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`, of any shape, rounded to quantized values."""
        if torch.compiler.is_compiling():
            return self._rounded(x)
        if x.numel() == 0 or not self.fake_quant_enabled.item():
            return x
        return fake_quantize(x, self.scale, self.zero_point, self.quant_min, self.quant_max, None)


class FusedMovingAvgObsFakeQuantize(FakeQuantize):
    """`FakeQuantize` over a moving average, in one operator for the per-tensor affine scheme.

    Other schemes run as in `FakeQuantize`. torch's operator computes the scale of symmetric schemes differently from
    the observers, so training and the converted model would differ; and it takes channels on axis 0 only. The flags
    are int64, as the operator requires.

    Args:
        observer: constructor of a moving-average observer.
        quant_min: smallest quantized value; None for the dtype's.
        quant_max: largest quantized value; None for the dtype's.
        observer_kwargs: further keywords of the observer.
    Raises: SpecError: the observer is not a moving average of minima and maxima.
    """

    def __init__(
        self,
        observer: Callable[..., object] = MovingAverageMinMaxObserver,
        quant_min: int | None = None,
        quant_max: int | None = None,
        **observer_kwargs: Any,  # Any: `is_dynamic` may be among them
    ) -> None:
        super().__init__(observer, quant_min, quant_max, **observer_kwargs)
        inner = self.activation_post_process
        if not isinstance(inner, MovingAverageMinMaxObserver | MovingAveragePerChannelMinMaxObserver):
            raise SpecError(
                "FusedMovingAvgObsFakeQuantize needs a moving-average observer",
                found=type(inner).__name__,
                expected="MovingAverageMinMaxObserver or MovingAveragePerChannelMinMaxObserver",
                remedy="use FakeQuantize for another observer",
            )
        self.fake_quant_enabled = self.fake_quant_enabled.long()
        self.observer_enabled = self.observer_enabled.long()
        # The operator computes the scale itself, as the plain observer with the smallest scale of float32 does.
        is_plain = type(inner) is MovingAverageMinMaxObserver and inner.eps.item() == FLOAT32_EPS
        self._is_fused = self.qscheme == torch.per_tensor_affine and is_plain

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, of any shape, and return it rounded to quantized values."""
        is_fused = self._is_fused and not self.activation_post_process.reduces_over_processes
        if torch.compiler.is_compiling() or not is_fused or x.dtype != torch.float32 or x.numel() == 0:
            return super().forward(x)
        inner = self.activation_post_process
        before = inner.min_val.clone(), inner.max_val.clone()
        rounded = torch.fused_moving_avg_obs_fake_quant(
            x,
            self.observer_enabled,
            self.fake_quant_enabled,
            inner.min_val,
            inner.max_val,
            self.scale,
            self.zero_point,
            inner.averaging_constant,
            self.quant_min,
            self.quant_max,
            -1,
        )
        if inner.has_observed and not bool((inner.min_val.isfinite() & inner.max_val.isfinite()).all()):
            inner.min_val.copy_(before[0])
            inner.max_val.copy_(before[1])
            reject_not_finite(x, self.where)
        return rounded
