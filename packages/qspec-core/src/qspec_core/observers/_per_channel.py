"""Observers of the smallest and largest value of each channel."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from qspec_core._errors import CalibrationError
from qspec_core.observers._arithmetic import PER_CHANNEL
from qspec_core.observers._base import (
    FLOAT32_EPS,
    SeenTensor,
    UniformQuantizationObserverBase,
    reject_not_finite,
)
from qspec_core.observers._minmax import average_into, check_averaging, limits_of_all_processes

__all__ = ["MovingAveragePerChannelMinMaxObserver", "PerChannelMinMaxObserver"]


def _channel_limits(x: Tensor, ch_axis: int) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of each channel, (channels,), without a copy of `x`."""
    others = [axis for axis in range(x.dim()) if axis != ch_axis % x.dim()]
    if not others:
        return x, x
    return x.amin(others), x.amax(others)  # 20 times as fast as aminmax along one dimension


class PerChannelMinMaxObserver(UniformQuantizationObserverBase):
    """Range from the smallest to the largest value seen in each channel.

    Buffers `min_val` and `max_val` start empty and become (channels,) with the first batch. An unchanged constant is
    observed only once.

    Args:
        ch_axis: dimension of the channels; None for 0.
        others: as `UniformQuantizationObserverBase`; a per-channel scheme, static.
    """

    ch_axis: int
    _seen: SeenTensor
    _schemes: tuple[torch.qscheme, ...] = PER_CHANNEL

    def __init__(
        self,
        ch_axis: int | None = 0,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_channel_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: Mapping[str, Any] | None = None,  # Any: torch's own keywords of a tensor
        eps: float = FLOAT32_EPS,
        is_dynamic: bool = False,
        **unused: object,
    ) -> None:
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps, is_dynamic, **unused)
        self._check_static()
        self._set_plain(ch_axis=0 if ch_axis is None else ch_axis, _seen=SeenTensor())
        self.register_buffer("min_val", torch.empty(0, **self._factory))
        self.register_buffer("max_val", torch.empty(0, **self._factory))

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, whose dimension `ch_axis` holds the channels; return it."""
        if x.numel() == 0 or self._seen.is_same(x):
            return x
        low, high = self._limits(x)
        if self.has_observed:
            low, high = torch.minimum(self.min_val, low), torch.maximum(self.max_val, high)
        self._store(low, high)
        self._seen.remember(x)
        return x

    def _limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of each channel, (channels,), with the dtype and device of the buffers.

        Raises: CalibrationError: `ch_axis` is not a dimension of `x`, the number of channels changed, or values are
            not finite.
        """
        if not -x.dim() <= self.ch_axis < x.dim():
            raise CalibrationError(
                f"ch_axis is {self.ch_axis}, the observed tensor has {x.dim()} dimensions",
                where=self.where,
                found=f"shape {tuple(x.shape)}, ch_axis={self.ch_axis}",
                remedy="correct ch_axis in the quantization spec",
            )
        low, high = _channel_limits(x.detach(), self.ch_axis)
        if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
            reject_not_finite(x.detach(), self.where)
        if self.min_val.numel() not in (0, low.numel()):
            raise CalibrationError(
                f"the observed tensor has {low.numel()} channels, earlier ones had {self.min_val.numel()}",
                where=self.where,
                found=f"{low.numel()} channels, shape {tuple(x.shape)}, ch_axis={self.ch_axis}",
                expected=f"{self.min_val.numel()} channels",
                remedy="correct ch_axis in the quantization spec, or calibrate with tensors of one shape",
            )
        return low.to(self.min_val), high.to(self.max_val)

    def _store(self, low: Tensor, high: Tensor) -> None:
        self.min_val.resize_(low.shape).copy_(low)
        self.max_val.resize_(high.shape).copy_(high)

    def reset_min_max_vals(self) -> None:
        """Forget what was observed."""
        self.min_val.resize_(0)
        self.max_val.resize_(0)
        self._seen.forget()

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:  # Any: arguments of torch's hook
        self._seen.forget()
        for name in ("min_val", "max_val"):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                getattr(self, name).resize_(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


class MovingAveragePerChannelMinMaxObserver(PerChannelMinMaxObserver):
    """Range from exponential averages of each batch's smallest and largest value in each channel.

    Args:
        averaging_constant: weight of the newest batch, 0 < c <= 1. The first batch sets the average.
        others: as `PerChannelMinMaxObserver`.
    """

    reduces_over_processes = False
    """Whether each batch is that of all processes together; see `share_ranges`."""

    def __init__(
        self,
        averaging_constant: float = 0.01,
        ch_axis: int | None = 0,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_channel_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = FLOAT32_EPS,
        is_dynamic: bool = False,
        **unused: Any,  # Any: `factory_kwargs` may be among them
    ) -> None:
        super().__init__(
            ch_axis, dtype, qscheme, reduce_range, quant_min, quant_max, eps=eps, is_dynamic=is_dynamic, **unused
        )
        check_averaging(type(self), averaging_constant, is_dynamic)
        self.averaging_constant = averaging_constant

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, whose dimension `ch_axis` holds the channels; return it."""
        if x.numel() == 0:
            return x
        low, high = self._limits(x)
        if self.reduces_over_processes:
            low, high = limits_of_all_processes(low, high)
        if self.has_observed:
            low = self.min_val + self.averaging_constant * (low - self.min_val)
            high = self.max_val + self.averaging_constant * (high - self.max_val)
        self._store(low, high)
        return x

    def can_be_traced(self) -> bool:
        """Whether `observe_traced` can run: the number of channels is known."""
        return self.min_val.numel() > 0 and not self.reduces_over_processes

    def observe_traced(self, x: Tensor, enabled: Tensor) -> None:
        """Observe `x` as `forward` does, in a form that `torch.compile` traces; if `enabled`, bool, (1,)."""
        low, high = _channel_limits(x.detach().to(self.min_val.dtype), self.ch_axis)
        fields = {"is_first": self.min_val > self.max_val, "enabled": enabled}
        average_into(self.min_val, low, **fields, constant=self.averaging_constant)
        average_into(self.max_val, high, **fields, constant=self.averaging_constant)
