"""Observers that find no range: fixed parameters, placeholders, recorders, parameters derived from others."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from qspec_core._errors import CalibrationError, SpecError
from qspec_core.observers._arithmetic import PER_TENSOR, quantized_range
from qspec_core.observers._base import ObserverBase, check_unused

__all__ = [
    "DerivedObserverOrFakeQuantize",
    "FixedQParamsObserver",
    "NoopObserver",
    "PlaceholderObserver",
    "RecordingObserver",
    "ReuseInputObserver",
]


def _no_qparams(observer: ObserverBase, reason: str) -> CalibrationError:
    return CalibrationError(
        f"{type(observer).__name__} has no scale and zero point: {reason}",
        where=observer.where,
        remedy="use an observer that finds a range, such as MinMaxObserver or HistogramObserver",
    )


class FixedQParamsObserver(ObserverBase):
    """Returns the scale and zero point that it was built with.

    Args:
        scale: real value of one quantized step.
        zero_point: quantized value that stands for 0.0.
        dtype: quantized dtype.
        qscheme: per-tensor scheme.
        quant_min: smallest quantized value; None for the dtype's.
        quant_max: largest quantized value; None for the dtype's.
        is_dynamic: not supported.
        unused: keywords of other observers, ignored.
    Raises: SpecError: the scheme is dynamic or per channel, the scale is not finite and positive, or the zero point is
        outside the range.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(
        self,
        scale: float,
        zero_point: int,
        dtype: torch.dtype = torch.quint8,
        qscheme: torch.qscheme = torch.per_tensor_affine,
        quant_min: int | None = None,
        quant_max: int | None = None,
        is_dynamic: bool = False,
        **unused: object,
    ) -> None:
        check_unused(type(self), unused)
        super().__init__(dtype, is_dynamic)
        self.quant_min, self.quant_max = quantized_range(dtype, quant_min, quant_max)
        self.qscheme = qscheme
        fits = 0.0 < scale < float("inf") and self.quant_min <= zero_point <= self.quant_max
        if is_dynamic or qscheme not in PER_TENSOR or not fits:
            raise SpecError(
                "FixedQParamsObserver needs a static per-tensor scheme, a finite positive scale, and a zero point "
                "within the range",
                found=f"{scale=}, {zero_point=}, {qscheme=}, {is_dynamic=}",
                expected=f"zero point in {self.quant_min}..{self.quant_max}",
                remedy="correct the fixed parameters",
            )
        self.register_buffer("scale", torch.tensor([scale], dtype=torch.float32))
        self.register_buffer("zero_point", torch.tensor([zero_point], dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The fixed scale, float32, and zero point, int64, both (1,)."""
        return self.scale, self.zero_point


class PlaceholderObserver(ObserverBase):
    """Tells convert a dtype and a range without observing: for casts and for dynamic quantization.

    Args:
        dtype: quantized dtype, or the float dtype to cast to.
        custom_op_name: not used; part of PT2E's signature.
        compute_dtype: not used; part of PT2E's signature.
        quant_min: smallest quantized value.
        quant_max: largest quantized value.
        qscheme: scheme; None for per-tensor affine.
        eps: smallest scale allowed; None for that of float32.
        is_dynamic: scale and zero point are computed from each input when the model runs.
        unused: keywords of other observers, ignored.
    """

    def __init__(
        self,
        dtype: torch.dtype = torch.float32,
        custom_op_name: str = "",
        compute_dtype: torch.dtype | None = None,
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: torch.qscheme | None = None,
        eps: float | None = None,
        is_dynamic: bool = False,
        **unused: object,
    ) -> None:
        check_unused(type(self), unused)
        super().__init__(dtype, is_dynamic)
        self.custom_op = custom_op_name
        self.compute_dtype = compute_dtype
        self.quant_min = quant_min
        self.quant_max = quant_max
        self.qscheme = torch.per_tensor_affine if qscheme is None else qscheme
        self.eps = torch.finfo(torch.float32).eps if eps is None else eps

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Raises: CalibrationError: always; a placeholder observes nothing."""
        raise _no_qparams(self, "it observes nothing")

    def extra_repr(self) -> str:
        """The dtype and whether it is dynamic."""
        return f"dtype={self.dtype}, is_dynamic={self.is_dynamic}"


class RecordingObserver(ObserverBase):
    """Keeps a copy of every tensor that it sees, for debugging.

    Args:
        dtype: quantized dtype.
        unused: keywords of other observers, ignored.
    """

    def __init__(self, dtype: torch.dtype = torch.quint8, **unused: object) -> None:
        check_unused(type(self), unused)
        super().__init__(dtype)
        self.tensor_val: list[Tensor] = []

    @property
    def has_observed(self) -> bool:
        """Whether the observer has seen a tensor."""
        return bool(self.tensor_val)

    def forward(self, x: Tensor) -> Tensor:
        """Keep a copy of `x`; return `x`."""
        self.tensor_val.append(x.detach().clone())
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Raises: CalibrationError: always; a recorder finds no range."""
        raise _no_qparams(self, "it records tensors")

    def get_tensor_value(self) -> list[Tensor]:
        """The tensors seen, in order."""
        return self.tensor_val


class NoopObserver(ObserverBase):
    """Marks a tensor that is cast to a float dtype; observes nothing.

    Args:
        dtype: dtype to cast to.
        custom_op_name: not used; part of PT2E's signature.
        unused: keywords of other observers, ignored.
    """

    def __init__(self, dtype: torch.dtype = torch.float16, custom_op_name: str = "", **unused: object) -> None:
        check_unused(type(self), unused)
        super().__init__(dtype)
        self.custom_op = custom_op_name

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Raises: CalibrationError: always; this observer finds no range."""
        raise _no_qparams(self, "it observes nothing")


class ReuseInputObserver(ObserverBase):
    """Placeholder for the observer of the operator's input. Ignores the keywords of other observers."""

    def __init__(self, **unused: object) -> None:
        check_unused(type(self), unused)
        super().__init__(torch.quint8, is_dynamic=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Raises: CalibrationError: always; the parameters are those of the input's observer."""
        raise _no_qparams(self, "the input's observer has them")


class DerivedObserverOrFakeQuantize(ObserverBase):
    """Computes scale and zero point from other observers: those of a bias from activation and weight, for example.

    Args:
        dtype: quantized dtype.
        obs_or_fqs: the observers or fake-quantizes to derive from. They do not become submodules of this one.
        derive_qparams_fn: takes `obs_or_fqs`; returns scale and zero point.
        quant_min: smallest quantized value; None for the dtype's.
        quant_max: largest quantized value; None for the dtype's.
        qscheme: per tensor or per channel.
        ch_axis: dimension of the channels.
        is_dynamic: not used; part of PT2E's signature.
        unused: keywords of other observers, ignored.
    """

    def __init__(
        self,
        dtype: torch.dtype,
        obs_or_fqs: Sequence[nn.Module],
        derive_qparams_fn: Callable[[Sequence[nn.Module]], tuple[Tensor, Tensor]],
        quant_min: int | None = None,
        quant_max: int | None = None,
        qscheme: torch.qscheme | None = None,
        ch_axis: int | None = None,
        is_dynamic: bool = False,
        **unused: object,
    ) -> None:
        check_unused(type(self), unused)
        super().__init__(dtype, is_dynamic)
        # A tuple, not a ModuleList: their state must not appear a second time in the state dict.
        self.obs_or_fqs: tuple[Any, ...] = tuple(obs_or_fqs)  # Any: a third party's observers have their own types
        self.derive_qparams_fn = derive_qparams_fn
        self.quant_min, self.quant_max = quantized_range(dtype, quant_min, quant_max)
        self.qscheme = torch.per_tensor_affine if qscheme is None else qscheme
        self.ch_axis = ch_axis

    @property
    def has_observed(self) -> bool:
        """Whether all of `obs_or_fqs` have seen data."""
        return all(getattr(source, "has_observed", True) for source in self.obs_or_fqs)

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The scale, float32, and zero point, integer, that `derive_qparams_fn` returns."""
        return self.derive_qparams_fn(list(self.obs_or_fqs))
