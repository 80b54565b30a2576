"""Base classes of the fake-quantizes, their switches, and the rounding they share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qspec_core.observers._base import ObserverBase
from qspec_core.observers._constructor import Configurable, PartialWrapper

__all__ = [
    "FakeQuantizeBase",
    "FakeQuantizeWithQParams",
    "ObserverOrFakeQuantize",
    "ObserverOrFakeQuantizeConstructor",
    "disable_fake_quant",
    "disable_observer",
    "enable_fake_quant",
    "enable_observer",
    "fake_quantize",
]


class FakeQuantizeBase(Configurable, nn.Module, ABC):
    """A module that observes its input and rounds it to quantized values. Two buffers switch these on and off.

    Buffers: `fake_quant_enabled`, `observer_enabled`, uint8, (1,), initially 1.
    """

    fake_quant_enabled: Tensor
    observer_enabled: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("fake_quant_enabled", torch.ones(1, dtype=torch.uint8))
        self.register_buffer("observer_enabled", torch.ones(1, dtype=torch.uint8))

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, of any shape, and return it rounded to quantized values."""

    @abstractmethod
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale, float32, and zero point, int64."""

    def enable_fake_quant(self, enabled: bool = True) -> None:
        """Switch rounding in `forward` on, or off with False."""
        self.fake_quant_enabled.fill_(int(enabled))

    def disable_fake_quant(self) -> None:
        """Switch rounding off: `forward` returns its input."""
        self.enable_fake_quant(False)

    def enable_observer(self, enabled: bool = True) -> None:
        """Switch observing in `forward` on, or off with False."""
        self.observer_enabled.fill_(int(enabled))

    def disable_observer(self) -> None:
        """Switch observing off: scale and zero point stay as they are."""
        self.enable_observer(False)


class FakeQuantizeWithQParams(FakeQuantizeBase):
    """Base class of fake-quantizes that keep scale and zero point as buffers: the last observed, or loaded, ones.

    Buffers: `scale`, `zero_point`, of the same shape, initially (1,).
    """

    scale: Tensor
    zero_point: Tensor

    def update_qparams(self) -> None:
        """Compute scale and zero point again after the observer changed outside `forward`."""
        self._store_qparams(*self.calculate_qparams())

    def _store_qparams(self, scale: Tensor, zero_point: Tensor) -> None:
        self.scale.resize_(scale.shape).copy_(scale)
        self.zero_point.resize_(zero_point.shape).copy_(zero_point)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:  # Any: arguments of torch's hook
        for name in ("scale", "zero_point"):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                getattr(self, name).resize_(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def fake_quantize(
    x: Tensor, scale: Tensor, zero_point: Tensor, quant_min: int, quant_max: int, ch_axis: int | None
) -> Tensor:
    """Round to quantized values: `(clamp(round(x / scale) + zero_point) - zero_point) * scale`.

    The gradient passes where the value lies within the range.

    Args:
        x: floating point, any shape. Types other than float32 are computed in float32.
        scale: float32, (1,) or (channels,).
        zero_point: int32 or float32, as `scale`.
        quant_min: smallest quantized value.
        quant_max: largest quantized value.
        ch_axis: dimension of the channels; None for one scale per tensor.
    Source: `torch.fake_quantize_per_tensor_affine` and `torch.fake_quantize_per_channel_affine`.
    """
    wide = x.to(torch.float32)
    if ch_axis is None:
        rounded = torch.fake_quantize_per_tensor_affine(wide, scale, zero_point, quant_min, quant_max)
    else:
        rounded = torch.fake_quantize_per_channel_affine(wide, scale, zero_point, ch_axis, quant_min, quant_max)
    return rounded.to(x.dtype)


def enable_fake_quant(mod: nn.Module) -> None:
    """Switch rounding on; for `model.apply(enable_fake_quant)`. Does nothing to other modules."""
    if isinstance(mod, FakeQuantizeBase):
        mod.enable_fake_quant()


def disable_fake_quant(mod: nn.Module) -> None:
    """Switch rounding off; for `model.apply(disable_fake_quant)`. Does nothing to other modules."""
    if isinstance(mod, FakeQuantizeBase):
        mod.disable_fake_quant()


def enable_observer(mod: nn.Module) -> None:
    """Switch observation on; for `model.apply(enable_observer)`. Does nothing to other modules."""
    if isinstance(mod, FakeQuantizeBase):
        mod.enable_observer()


def disable_observer(mod: nn.Module) -> None:
    """Switch observation off; for `model.apply(disable_observer)`. Does nothing to other modules."""
    if isinstance(mod, FakeQuantizeBase):
        mod.disable_observer()


ObserverOrFakeQuantize = ObserverBase | FakeQuantizeBase
"""Type of the module that observes a quantization point."""
ObserverOrFakeQuantizeConstructor = PartialWrapper | type[ObserverBase] | type[FakeQuantizeBase]
"""Type of its constructor."""
