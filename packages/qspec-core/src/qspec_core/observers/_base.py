"""Base classes of the observers: the methods each must have, and the arithmetic most of them share."""

import math
import warnings
import weakref
from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from qspec_core._errors import CalibrationError, SourceLocation, SpecError
from qspec_core.observers._arithmetic import (
    PER_TENSOR,
    choose_qparams,
    choose_qparams_of_range,
    quantized_range,
)
from qspec_core.observers._constructor import SPEC_FIELDS, Configurable

__all__ = ["ObserverBase", "ObserverNeverRanWarning", "UniformQuantizationObserverBase"]

_IGNORED_KEYWORDS = frozenset({*SPEC_FIELDS, "eps", "reduce_range", "factory_kwargs", "averaging_constant"})
FLOAT32_EPS = torch.finfo(torch.float32).eps


class ObserverNeverRanWarning(UserWarning):
    """`calculate_qparams` was called on an observer that has seen no data."""


def check_unused(owner: type, unused: Mapping[str, object]) -> None:
    """Ignore keywords that some other observer takes; refuse keywords that no observer takes.

    Raises: TypeError: a keyword that no observer takes, with the message that Python gives.
    """
    unknown = [name for name in unused if name not in _IGNORED_KEYWORDS]
    if unknown:
        raise TypeError(f"{owner.__name__}() got an unexpected keyword argument {unknown[0]!r}")


class ObserverBase(Configurable, nn.Module, ABC):
    """A module that returns its input unchanged and learns from it how to quantize it.

    Args:
        dtype: quantized dtype.
        is_dynamic: scale and zero point are computed from each input when the model runs.
    """

    where: SourceLocation | None = None
    """Place of the observed tensor in the model. Prepare sets it when it inserts the observer; errors name it."""
    dtype: torch.dtype
    is_dynamic: bool

    def __init__(self, dtype: torch.dtype, is_dynamic: bool = False) -> None:
        super().__init__()
        self._set_plain(dtype=dtype, is_dynamic=is_dynamic)

    def _set_plain(self, **attributes: object) -> None:
        """Set attributes that are neither tensors nor modules.

        `nn.Module.__setattr__` checks every value for being one; that takes a tenth of the time of preparing a model.
        """
        vars(self).update(attributes)

    @property
    def has_observed(self) -> bool:
        """Whether the observer has seen data. Always True for observers that need none."""
        return True

    @property
    def spread(self) -> float | None:
        """Standard deviation of all values seen; None for an observer that does not keep it."""
        return None

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, of any shape; return it."""

    @abstractmethod
    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of what was observed."""


class UniformQuantizationObserverBase(ObserverBase):
    """Base class of observers that find a range and divide it into equal steps.

    Args:
        dtype: quantized dtype.
        qscheme: per tensor or per channel; symmetric or affine.
        reduce_range: give up one bit; see `quantized_range`.
        quant_min: smallest quantized value; None for the dtype's.
        quant_max: largest quantized value; None for the dtype's.
        factory_kwargs: `device` and `dtype` of the buffers.
        eps: smallest scale allowed; kept in the buffer `eps`, float32, (1,).
        is_dynamic: scale and zero point are computed from each input when the model runs.
        unused: keywords of other observers, ignored.
    Raises: SpecError: the range is empty, outside the dtype, or without 0; or the observer does not support the scheme.
    """

    eps: Tensor
    min_val: Tensor
    max_val: Tensor
    qscheme: torch.qscheme
    reduce_range: bool
    has_customized_qrange: bool
    quant_min: float
    quant_max: float
    _factory: dict[str, Any]
    _warned: bool
    _schemes: tuple[torch.qscheme, ...] = ()

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
        check_unused(type(self), unused)
        super().__init__(dtype, is_dynamic)
        if self._schemes and qscheme not in self._schemes:
            raise SpecError(
                f"{type(self).__name__} does not support this scheme",
                found=f"qscheme={qscheme}",
                expected=", ".join(map(str, self._schemes)),
                remedy="choose another scheme, or a per-channel observer for a per-channel scheme",
            )
        lowest, highest = quantized_range(dtype, quant_min, quant_max, reduce_range=reduce_range)
        self._set_plain(
            qscheme=qscheme,
            reduce_range=reduce_range,
            has_customized_qrange=quant_min is not None or quant_max is not None,
            quant_min=lowest,
            quant_max=highest,
            _factory={"dtype": torch.float32, **(factory_kwargs or {})},
            _warned=False,
        )
        self.register_buffer("eps", torch.tensor([eps], **self._factory))

    @property
    def has_observed(self) -> bool:
        """Whether the observer has seen data."""
        low, high = self.min_val, self.max_val
        if low.numel() == 1:
            return not low.item() > high.item()
        return low.numel() > 0 and not bool((low > high).any())

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of the observed range.

        Returns: scale, float32, and zero point, int64 (float32 for float zero points), (1,) or (channels,); 1.0 and 0
            after a warning where nothing was observed.
        """
        return self._calculate_qparams(self.min_val, self.max_val)

    def _calculate_qparams(self, min_val: Tensor, max_val: Tensor) -> tuple[Tensor, Tensor]:
        """Scale and zero point of a range. PT2E quantizers call this method by name when they derive parameters."""
        is_traced = torch.compiler.is_compiling()  # then no Python number may come from a tensor
        if not is_traced and not self.has_observed:
            return self._qparams_without_data()
        if not is_traced and self.qscheme in PER_TENSOR and min_val.is_cpu and min_val.dtype == torch.float32:
            return self._qparams_of_range(min_val.item(), max_val.item())
        return choose_qparams(
            min_val,
            max_val,
            quant_min=self.quant_min,
            quant_max=self.quant_max,
            dtype=self.dtype,
            qscheme=self.qscheme,
            eps=self.eps,
            has_custom_range=self.has_customized_qrange,
        )

    def _qparams_of_range(self, low: float, high: float) -> tuple[Tensor, Tensor]:
        """Scale and zero point of one range in float32."""
        scale, zero_point = choose_qparams_of_range(
            low,
            high,
            quant_min=self.quant_min,
            quant_max=self.quant_max,
            dtype=self.dtype,
            qscheme=self.qscheme,
            eps=self.eps.item(),
            has_custom_range=self.has_customized_qrange,
        )
        device = self.eps.device
        return torch.full((1,), scale, device=device), torch.full((1,), zero_point, dtype=torch.int64, device=device)

    def _qparams_without_data(self) -> tuple[Tensor, Tensor]:
        if not self._warned:
            self._warned = True
            place = "" if self.where is None else f" at node {self.where.node}, module {self.where.module_path}"
            warnings.warn(
                f"{type(self).__name__}{place} has seen no data; it returns scale 1.0 and zero point 0. Run the "
                "prepared model on calibration data before converting it.",
                ObserverNeverRanWarning,
                stacklevel=4,
            )
        kind = torch.float32 if self.qscheme == torch.per_channel_affine_float_qparams else torch.int64
        device = self.eps.device
        return torch.ones(1, device=device), torch.zeros(1, dtype=kind, device=device)

    def _check_static(self) -> None:
        if self.is_dynamic:
            raise SpecError(
                f"{type(self).__name__} does not support dynamic quantization",
                found="is_dynamic=True",
                remedy="use PlaceholderObserver for a dynamic spec",
            )

    def reset_min_max_vals(self) -> None:
        """Forget what was observed."""
        self.min_val.fill_(math.inf)
        self.max_val.fill_(-math.inf)

    def extra_repr(self) -> str:
        """The observed range."""
        return f"min_val={self.min_val}, max_val={self.max_val}"


class SeenTensor:
    """Remembers the last tensor observed, so that an unchanged weight is not observed again on every forward.

    It holds only a weak reference. A change through `tensor.data` does not raise autograd's version counter and is
    not noticed.
    """

    def __init__(self) -> None:
        self._seen: tuple[weakref.ref[Tensor], int, int] | None = None

    def is_same(self, x: Tensor) -> bool:
        """Whether `x` is the tensor remembered, with the same contents."""
        if self._seen is None:
            return False
        tensor, version, address = self._seen
        return tensor() is x and x._version == version and x.data_ptr() == address

    def remember(self, x: Tensor) -> None:
        """Remember `x`. Inference tensors count no versions and are not remembered."""
        if x.is_inference():
            self.forget()
            return
        self._seen = weakref.ref(x), x._version, x.data_ptr()

    def forget(self) -> None:
        """Forget the tensor."""
        self._seen = None

    def __reduce__(self) -> tuple[type["SeenTensor"], tuple[()]]:
        return SeenTensor, ()  # a copy, possibly in another process, starts empty


def reject_not_finite(x: Tensor, where: SourceLocation | None) -> None:
    """Raise for a tensor whose smallest or largest value is NaN or infinite.

    Raises: CalibrationError: always.
    """
    wrong = int((~torch.isfinite(x)).sum())
    raise CalibrationError(
        f"an observer got values that are not finite: {wrong} of {x.numel()}",
        where=where,
        found=f"{int(torch.isnan(x).sum())} NaN, {int(torch.isinf(x).sum())} infinite, shape {tuple(x.shape)}",
        expected="finite values",
        remedy="check the calibration data, and that the float model gives finite values on it; in training, lower "
        "the learning rate or clip the gradients",
    )


def finite_limits(x: Tensor, where: SourceLocation | None) -> tuple[Tensor, Tensor]:
    """Smallest and largest value of a tensor that is not empty. NaN and infinity show in these two values.

    Raises: CalibrationError: they are not finite.
    """
    low, high = torch.aminmax(x)
    if not (math.isfinite(low.item()) and math.isfinite(high.item())):
        reject_not_finite(x, where)
    return low, high
