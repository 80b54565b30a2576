"""Fake-quantize with trainable scale and zero point."""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qspec_core._errors import SourceLocation
from qspec_core.fake_quantize._base import FakeQuantizeBase
from qspec_core.fake_quantize._observing import build_inner
from qspec_core.fake_quantize._traced import can_trace
from qspec_core.observers._arithmetic import PER_CHANNEL, SYMMETRIC

__all__ = ["LearnableFakeQuantize", "disable_range_learning", "enable_range_learning"]


def _round_through(x: Tensor) -> Tensor:
    """Round, with the gradient of the identity (straight-through estimator)."""
    return x + (torch.round(x) - x).detach()


def _scale_gradient(x: Tensor, factor: float) -> Tensor:
    """The same value, with its gradient multiplied by `factor`."""
    return x * factor + (x - x * factor).detach()


class LearnableFakeQuantize(FakeQuantizeBase):
    """Initializes scale and zero point from an observer, then trains them with the weights.

    `scale` and `zero_point` are None until the first forward, then parameters, float32, (1,) or (channels,); pass them
    to the optimizer after it. They require gradients only while learning is enabled; the zero point of a symmetric
    scheme never does.

    Args:
        observer: constructor of the observer that finds the initial values.
        quant_min: smallest quantized value; None for the observer's.
        quant_max: largest quantized value; None for the observer's.
        use_grad_scaling: divide the gradient of scale and zero point by sqrt(elements per scale * quant_max).
        observer_kwargs: further keywords of the observer.
    Raises: SpecError: the observer has no integer range, or refuses its arguments.
    Source: Esser et al., "Learned step size quantization", 2020; Bhalgat et al., "LSQ+", 2020, for the zero point.
    """

    scale: nn.Parameter | None
    zero_point: nn.Parameter | None
    learning_enabled: Tensor
    eps: Tensor

    def __init__(
        self,
        observer: Callable[..., object],
        quant_min: int | None = None,
        quant_max: int | None = None,
        use_grad_scaling: bool = False,
        **observer_kwargs: object,
    ) -> None:
        super().__init__()
        fields = {**observer_kwargs, "quant_min": quant_min, "quant_max": quant_max}
        self.activation_post_process = build_inner(type(self), observer, fields)
        inner = self.activation_post_process
        self.quant_min, self.quant_max = inner.quant_min, inner.quant_max
        self.use_grad_scaling = use_grad_scaling
        self.dtype: torch.dtype = inner.dtype
        self.qscheme: torch.qscheme = inner.qscheme
        self.is_dynamic = False
        self.is_per_channel = self.qscheme in PER_CHANNEL
        self.ch_axis: int = inner.ch_axis if self.is_per_channel else -1
        self.register_parameter("scale", None)
        self.register_parameter("zero_point", None)
        self.register_buffer("learning_enabled", torch.zeros(1, dtype=torch.uint8))
        self.register_buffer("eps", torch.tensor([torch.finfo(torch.float32).eps]))

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
        """Whether there is a scale, observed or loaded."""
        return self.scale is not None or bool(self.activation_post_process.has_observed)

    def enable_range_learning(self) -> None:
        """Train scale and zero point. Switches rounding on and observing off."""
        self._learn(True)
        self.enable_fake_quant()
        self.disable_observer()

    def disable_range_learning(self) -> None:
        """Stop training scale and zero point. The switches for rounding and observing stay as they are."""
        self._learn(False)

    def _learn(self, enabled: bool) -> None:
        self.learning_enabled.fill_(int(enabled))
        if self.scale is not None and self.zero_point is not None:
            self.scale.requires_grad_(enabled)
            self.zero_point.requires_grad_(enabled and self.qscheme not in SYMMETRIC)

    def enable_observer(self, enabled: bool = True) -> None:
        """Switch observing in `forward` on, which ends learning, or off with False."""
        if enabled:
            self._learn(False)
        super().enable_observer(enabled)

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale, float32, and zero point, int64, rounded and within the range."""
        if self.scale is None or self.zero_point is None:
            qparams: tuple[Tensor, Tensor] = self.activation_post_process.calculate_qparams()
            return qparams
        zero_point = self.zero_point.detach().round().clamp(self.quant_min, self.quant_max)
        return torch.maximum(self.scale.detach(), self.eps), zero_point.to(torch.int64)

    def forward(self, x: Tensor) -> Tensor:
        """Observe or learn from `x`, of any shape, and return it rounded to quantized values."""
        if x.numel() == 0:
            return x
        if self.scale is not None and can_trace(self.activation_post_process):
            return self._traced(x)
        if self.observer_enabled.item() or self.scale is None:
            self.activation_post_process(x)
            self._set(*self.activation_post_process.calculate_qparams())
        scale, zero_point = self.scale, self.zero_point
        if not self.fake_quant_enabled.item() or scale is None or zero_point is None:
            return x
        return self._rounded(x, scale, zero_point)

    def _traced(self, x: Tensor) -> Tensor:
        """`forward` in a form that `torch.compile` traces without a graph break."""
        scale, zero_point = self.scale, self.zero_point
        if scale is None or zero_point is None:
            raise TypeError("there is no scale yet")  # forward has checked that there is
        with torch.no_grad():
            observes = self.observer_enabled.bool()
            self.activation_post_process.observe_traced(x, observes)
            newest = self.activation_post_process.calculate_qparams()
            for held, value in zip((scale, zero_point), newest, strict=True):
                held.copy_(torch.where(observes, value, held))
        return torch.where(self.fake_quant_enabled.bool(), self._rounded(x, scale, zero_point), x)

    def _rounded(self, x: Tensor, scale: Tensor, zero_point: Tensor) -> Tensor:
        if torch.compiler.is_compiling():
            learns = self.learning_enabled.bool()
            scale, zero_point = (torch.where(learns, value, value.detach()) for value in (scale, zero_point))
        elif not self.learning_enabled.item():
            scale, zero_point = scale.detach(), zero_point.detach()
        if self.use_grad_scaling:
            factor = (x.numel() / scale.numel() * self.quant_max) ** -0.5
            scale, zero_point = _scale_gradient(scale, factor), _scale_gradient(zero_point, factor)
        shape = [1] * x.dim()
        if self.is_per_channel:
            shape[self.ch_axis] = -1
        # The lower bound eps passes the gradient, so that a scale that has reached it can grow again.
        # (1,) or (channels,) -> (1, ..., channels, ..., 1)
        step = (scale + (torch.maximum(scale, self.eps) - scale).detach()).reshape(shape)
        offset = _round_through(zero_point.clamp(self.quant_min, self.quant_max)).reshape(shape)
        quantized = (_round_through(x / step) + offset).clamp(self.quant_min, self.quant_max)
        return ((quantized - offset) * step).to(x.dtype)

    def update_qparams(self) -> None:
        """Compute scale and zero point again after the observer changed outside `forward`, unless they are trained."""
        if not self.learning_enabled.item():
            self._set(*self.activation_post_process.calculate_qparams())

    def _set(self, scale: Tensor, zero_point: Tensor) -> None:
        """Set scale and zero point. Parameters that exist stay the same objects."""
        if self.scale is None or self.zero_point is None or self.scale.shape != scale.shape:
            self.scale = nn.Parameter(scale.detach().clone())
            self.zero_point = nn.Parameter(zero_point.detach().to(torch.float32))
            self._learn(bool(self.learning_enabled.item()))
            return
        with torch.no_grad():
            self.scale.copy_(scale)
            self.zero_point.copy_(zero_point)

    def extra_repr(self) -> str:
        """Range, dtype, parameters and switches."""
        return (
            f"fake_quant_enabled={self.fake_quant_enabled}, observer_enabled={self.observer_enabled}, "
            f"learning_enabled={self.learning_enabled}, quant_min={self.quant_min}, quant_max={self.quant_max}, "
            f"dtype={self.dtype}, qscheme={self.qscheme}, scale={self.scale}, zero_point={self.zero_point}"
        )

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:  # Any: arguments of torch's hook
        scale, zero_point = state_dict.get(prefix + "scale"), state_dict.get(prefix + "zero_point")
        if scale is not None and zero_point is not None:
            self._set(scale, zero_point)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)


def enable_range_learning(mod: nn.Module) -> None:
    """Train scale and zero point; for `model.apply(enable_range_learning)`. Does nothing to other modules."""
    if isinstance(mod, LearnableFakeQuantize):
        mod.enable_range_learning()


def disable_range_learning(mod: nn.Module) -> None:
    """Stop training scale and zero point; for `model.apply(...)`. Does nothing to other modules."""
    if isinstance(mod, LearnableFakeQuantize):
        mod.disable_range_learning()
