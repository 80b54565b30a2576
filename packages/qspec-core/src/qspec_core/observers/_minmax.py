"""Observers of the smallest and largest value of a tensor."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, distributed

from qspec_core._errors import SpecError
from qspec_core.observers._arithmetic import PER_TENSOR
from qspec_core.observers._base import FLOAT32_EPS, SeenTensor, UniformQuantizationObserverBase, finite_limits

__all__ = [
    "MinMaxObserver",
    "MovingAverageMinMaxObserver",
    "average_into",
    "check_averaging",
    "limits_of_all_processes",
]


class MinMaxObserver(UniformQuantizationObserverBase):
    """Range from the smallest to the largest value seen; per tensor.

    Buffers `min_val` and `max_val`, scalars, start at +inf and -inf. An unchanged constant is observed only once. Args
    and Raises: as `UniformQuantizationObserverBase`.
    """

    _seen: SeenTensor
    _schemes = PER_TENSOR

    def __init__(
        self,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        factory_kwargs: Mapping[str, Any] | None = None,  # Any: torch's own keywords of a tensor
        eps: float = FLOAT32_EPS,
        is_dynamic: bool = False,
        **unused: object,
    ) -> None:
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, factory_kwargs, eps, is_dynamic, **unused)
        self.register_buffer("min_val", torch.tensor(math.inf, **self._factory))
        self.register_buffer("max_val", torch.tensor(-math.inf, **self._factory))
        self._set_plain(_seen=SeenTensor())

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, of any shape; return it."""
        if x.numel() == 0 or self._seen.is_same(x):
            return x
        low, high = finite_limits(x.detach(), self.where)
        self.min_val.copy_(torch.minimum(self.min_val, low.to(self.min_val)))
        self.max_val.copy_(torch.maximum(self.max_val, high.to(self.max_val)))
        self._seen.remember(x)
        return x

    def reset_min_max_vals(self) -> None:
        """Forget what was observed."""
        super().reset_min_max_vals()
        self._seen.forget()

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:  # Any: arguments of torch's hook
        self._seen.forget()
        super()._load_from_state_dict(*args, **kwargs)


def check_averaging(owner: type, averaging_constant: float, is_dynamic: bool) -> None:
    """Check the weight that a moving average gives to the newest batch.

    Raises: SpecError: it lies outside 0..1, or dynamic quantization would average over batches.
    """
    if not 0.0 < averaging_constant <= 1.0:
        raise SpecError(
            f"{owner.__name__} has an averaging constant outside 0..1",
            found=f"averaging_constant={averaging_constant}",
            remedy="give the weight of the newest batch, greater than 0 and at most 1",
        )
    if is_dynamic and averaging_constant != 1:
        raise SpecError(
            f"{owner.__name__} averages over batches; dynamic quantization uses only one",
            found=f"is_dynamic=True, averaging_constant={averaging_constant}",
            expected="averaging_constant=1",
            remedy="give averaging_constant=1, or use PlaceholderObserver",
        )


def limits_of_all_processes(low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
    """The smallest and the largest value that any process of the default group has; elementwise."""
    both = torch.stack([-low, high])
    distributed.all_reduce(both, distributed.ReduceOp.MAX)
    return -both[0], both[1]


def average_into(limit: Tensor, newest: Tensor, *, is_first: Tensor, enabled: Tensor, constant: float) -> None:
    """Average the limit of a batch into a buffer, in operators alone, for compiled code.

    A value that is not finite leaves the buffer as it was: compiled code cannot raise an error.
    """
    averaged = torch.where(is_first, newest, limit + constant * (newest - limit))
    limit.copy_(torch.where(enabled & newest.isfinite(), averaged, limit).reshape(limit.shape))


class MovingAverageMinMaxObserver(MinMaxObserver):
    """Range from exponential averages of each batch's smallest and largest value; per tensor.

    Args:
        averaging_constant: weight of the newest batch, 0 < c <= 1. The first batch sets the average.
        others: as `MinMaxObserver`; dynamic only with `averaging_constant=1`.
    """

    reduces_over_processes = False
    """Whether each batch is that of all processes together; see `share_ranges`."""

    def __init__(
        self,
        averaging_constant: float = 0.01,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        reduce_range: bool = False,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float = FLOAT32_EPS,
        is_dynamic: bool = False,
        **unused: Any,  # Any: `factory_kwargs` may be among them
    ) -> None:
        check_averaging(type(self), averaging_constant, is_dynamic)
        super().__init__(dtype, qscheme, reduce_range, quant_min, quant_max, eps=eps, is_dynamic=is_dynamic, **unused)
        self.averaging_constant = averaging_constant

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, of any shape; return it."""
        if x.numel() == 0:
            return x
        low, high = (limit.to(self.min_val) for limit in finite_limits(x.detach(), self.where))
        if self.reduces_over_processes:
            low, high = limits_of_all_processes(low, high)
        if self.has_observed:
            low = self.min_val + self.averaging_constant * (low - self.min_val)
            high = self.max_val + self.averaging_constant * (high - self.max_val)
        self.min_val.copy_(low)
        self.max_val.copy_(high)
        return x

    def can_be_traced(self) -> bool:
        """Whether `observe_traced` can run."""
        return not self.reduces_over_processes

    def observe_traced(self, x: Tensor, enabled: Tensor) -> None:
        """Observe `x` as `forward` does, in a form that `torch.compile` traces; if `enabled`, bool, (1,)."""
        low, high = torch.aminmax(x.detach().to(self.min_val.dtype))
        fields = {"is_first": self.min_val > self.max_val, "enabled": enabled}
        average_into(self.min_val, low, **fields, constant=self.averaging_constant)
        average_into(self.max_val, high, **fields, constant=self.averaging_constant)
