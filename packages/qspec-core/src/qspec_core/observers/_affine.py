"""Affine observers: one range for each block of a tensor (per tensor, axis, group, row, token or block)."""

import math
import warnings
from collections.abc import Mapping, Sequence
from enum import Enum
from typing import Any

import torch
from torch import Tensor

from qspec_core import ops
from qspec_core._errors import CalibrationError, SpecError
from qspec_core.observers._arithmetic import FLOAT8, choose_qparams, quantized_range
from qspec_core.observers._base import (
    FLOAT32_EPS,
    ObserverBase,
    ObserverNeverRanWarning,
    check_unused,
    reject_not_finite,
)
from qspec_core.observers._blocks import Size, block_form, block_grid, is_tensor_wide, split_blocks
from qspec_core.observers._form import ConvertedForm, Step
from qspec_core.observers._granularity import (
    Granularity,
    MappingType,
    PerTensor,
    PerToken,
    TorchAODType,
    ZeroPointDomain,
    get_block_size,
    read_granularity,
    read_option,
)
from qspec_core.observers._minmax import check_averaging

__all__ = [
    "AffineQuantizedMinMaxObserver",
    "AffineQuantizedMovingAverageMinMaxObserver",
    "AffineQuantizedObserverBase",
    "AffineQuantizedPlaceholderObserver",
]

_SUB_BYTE_DTYPES: Mapping[object, tuple[torch.dtype, int, int]] = {
    **{getattr(torch, f"int{bits}"): (torch.int8, -(2 ** (bits - 1)), 2 ** (bits - 1) - 1) for bits in range(1, 8)},
    **{getattr(torch, f"uint{bits}"): (torch.uint8, 0, 2**bits - 1) for bits in range(1, 8)},
    **{kind: (torch.int8, -(2 ** (kind.value - 1)), 2 ** (kind.value - 1) - 1) for kind in TorchAODType},
}
"""Dtypes of fewer than 8 bits: the dtype that stores their values, and their range."""


class AffineQuantizedObserverBase(ObserverBase):
    """Base class of the affine observers. `converted_form` tells convert how to write them.

    Buffers `min_val` and `max_val` start empty, then hold one value for each block. Dimensions that one block spans are
    left out of their shape.

    Args:
        mapping_type: symmetric or not.
        target_dtype: integer dtype; values of fewer than 8 bits are stored in 8.
        granularity: which elements have one scale. Classes of other stacks are read by their names and fields, as are
            members of their enumerations in the other arguments.
        quant_min: smallest quantized value; None for the dtype's.
        quant_max: largest quantized value; None for the dtype's.
        eps: smallest scale allowed; None for that of float32.
        scale_dtype: dtype of the scale; None for float32.
        zero_point_dtype: dtype of the zero point; None for int32.
        preserve_zero: 0 is exact. False is not supported.
        zero_point_domain: INT, or NONE for symmetric signed schemes. FLOAT is not supported: the operators of
            converted graphs have integer zero points.
        is_dynamic: scale and zero point are computed from each input when the model runs.
        unused: keywords of other observers, ignored.
    Raises: SpecError: an unsupported scheme, or a range that is empty, outside the dtype, or without 0.
    """

    min_val: Tensor
    max_val: Tensor

    def __init__(
        self,
        mapping_type: MappingType,
        target_dtype: torch.dtype | TorchAODType,
        granularity: Granularity,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float | None = None,
        scale_dtype: torch.dtype | None = None,
        zero_point_dtype: torch.dtype | None = None,
        preserve_zero: bool = True,
        zero_point_domain: ZeroPointDomain | None = ZeroPointDomain.INT,
        is_dynamic: bool = False,
        **unused: object,
    ) -> None:
        check_unused(type(self), unused)
        mapping_type, granularity = read_option(MappingType, mapping_type), read_granularity(granularity)
        if zero_point_domain is not None:
            zero_point_domain = read_option(ZeroPointDomain, zero_point_domain)
        if isinstance(target_dtype, Enum):
            target_dtype = read_option(TorchAODType, target_dtype)
        dtype, low, high = _SUB_BYTE_DTYPES.get(target_dtype, (target_dtype, None, None))
        if not isinstance(dtype, torch.dtype) or dtype in FLOAT8:
            raise _unsupported(type(self), f"target_dtype={target_dtype}", "an integer dtype")
        super().__init__(dtype, is_dynamic)
        quant_min = low if quant_min is None else quant_min
        quant_max = high if quant_max is None else quant_max
        limits = quantized_range(dtype, quant_min, quant_max)
        self.quant_min, self.quant_max = int(limits[0]), int(limits[1])
        if zero_point_domain is ZeroPointDomain.FLOAT or not preserve_zero:
            found = f"zero_point_domain={zero_point_domain}, preserve_zero={preserve_zero}"
            raise _unsupported(type(self), found, "ZeroPointDomain.INT and preserve_zero=True")
        if zero_point_domain is not ZeroPointDomain.INT and (
            mapping_type is MappingType.ASYMMETRIC or self.quant_min == 0
        ):
            found = f"no zero point, {mapping_type}, range {self.quant_min}..{self.quant_max}"
            raise _unsupported(type(self), found, "a symmetric mapping to signed values")
        self.mapping_type, self.target_dtype, self.granularity = mapping_type, target_dtype, granularity
        self.eps = FLOAT32_EPS if eps is None else eps
        self.scale_dtype = torch.float32 if scale_dtype is None else scale_dtype
        self.zero_point_dtype = torch.int32 if zero_point_dtype is None else zero_point_dtype
        self.preserve_zero, self.zero_point_domain = preserve_zero, zero_point_domain
        self.register_buffer("min_val", torch.empty(0))
        self.register_buffer("max_val", torch.empty(0))

    @property
    def has_observed(self) -> bool:
        """Whether the observer has seen data."""
        return self.min_val.numel() > 0 and not bool((self.min_val > self.max_val).any())

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each block, in the shape of `min_val`; 1.0 and 0, with a warning, without data."""
        if not self.has_observed:
            warnings.warn(
                f"{type(self).__name__} has seen no data; it returns scale 1.0 and zero point 0. Run the prepared "
                "model on calibration data before converting it.",
                ObserverNeverRanWarning,
                stacklevel=2,
            )
            return torch.ones(1, dtype=self.scale_dtype), torch.zeros(1, dtype=self.zero_point_dtype)
        low, high = self.min_val.clamp(max=0.0), self.max_val.clamp(min=0.0)
        if self.mapping_type is MappingType.SYMMETRIC_NO_CLIPPING_ERR and self.quant_min < 0:
            scale = torch.maximum(low / self.quant_min, high / self.quant_max).clamp(min=self.eps)
            zero_point = torch.zeros_like(scale)
        else:
            is_symmetric = self.mapping_type is not MappingType.ASYMMETRIC
            scale, zero_point = choose_qparams(
                low,
                high,
                quant_min=self.quant_min,
                quant_max=self.quant_max,
                dtype=self.dtype,
                qscheme=torch.per_channel_symmetric if is_symmetric else torch.per_channel_affine,
                eps=torch.full((1,), self.eps, device=low.device),
            )
        shape = self.min_val.shape
        return scale.reshape(shape).to(self.scale_dtype), zero_point.reshape(shape).to(self.zero_point_dtype)

    def converted_form(self, shape: Sequence[Size]) -> ConvertedForm:
        """How the converted model quantizes a tensor of this shape.

        Args:
            shape: shape of the tensor; sizes may be symbolic.
        Raises:
            SpecError: the granularity does not fit the shape, or no operator finds its parameters at run time.
            CalibrationError: the tensors observed had a different number of blocks, or that number is symbolic.
        """
        block, is_token = self._block_size(shape), isinstance(self.granularity, PerToken)
        limits = self.quant_min, self.quant_max, self.dtype
        if self.is_dynamic:
            choose = self._choose(is_tensor_wide(shape, block) and not is_token)
            return block_form(shape, block, limits, None, choose, is_token=is_token)
        grid = block_grid(shape, block)
        self._check_grid(grid, shape)
        scale, zero_point = self.calculate_qparams()
        if not self.has_observed:
            scale, zero_point = scale.expand(grid), zero_point.expand(grid)
        return block_form(shape, block, limits, (scale, zero_point), None, is_token=is_token)

    def _choose(self, is_tensor_wide: bool) -> Step:
        """The step that finds scale and zero point of each input at run time."""
        is_symmetric = self.mapping_type is not MappingType.ASYMMETRIC
        if is_tensor_wide:
            chooser = ops.CHOOSE_QPARAMS_SYMMETRIC if is_symmetric else ops.CHOOSE_QPARAMS
            return Step(chooser, (self.quant_min, self.quant_max, self.eps, self.dtype))
        lowest = (-128, -127) if is_symmetric else (-128,)
        if self.dtype != torch.int8 or self.quant_min not in lowest or self.quant_max != 127:
            raise _unsupported(
                type(self),
                f"dynamic, {self.mapping_type}, {self.dtype} {self.quant_min}..{self.quant_max}",
                "int8 with its whole range, the only one that the choose_qparams_per_token operators support",
            )
        chooser = ops.CHOOSE_QPARAMS_PER_TOKEN if is_symmetric else ops.CHOOSE_QPARAMS_PER_TOKEN_ASYMMETRIC
        return Step(chooser, (self.dtype,))

    def _limits(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Smallest and largest value of each block, with the dtype and device of the buffers.

        Raises:
            SpecError: see `get_block_size`.
            CalibrationError: the blocks differ from those of earlier tensors, or values are not finite.
        """
        data, block = x.detach(), self._block_size(x.shape)
        blocks = data
        for step in split_blocks(tuple(x.shape), block):
            blocks = step(blocks)
        # blocks: (blocks along each dimension..., elements of a block)
        low, high = torch.aminmax(blocks, dim=-1)
        if not bool(torch.isfinite(low).all() & torch.isfinite(high).all()):
            reject_not_finite(data, self.where)
        # PerTensor is one block for every shape; block_grid would add an axis for a dimension of size 1.
        grid = () if isinstance(self.granularity, PerTensor) else block_grid(x.shape, block)
        self._check_grid(grid, x.shape)
        return low.reshape(grid).to(self.min_val), high.reshape(grid).to(self.max_val)

    def _block_size(self, shape: Sequence[Size]) -> tuple[Size, ...]:
        try:
            return get_block_size(shape, self.granularity)
        except SpecError as error:
            raise error.at(self.where) from None

    def _check_grid(self, grid: Sequence[Size], shape: Sequence[Size]) -> None:
        is_known = all(isinstance(size, int) for size in grid)
        if self.min_val.numel() == 0 and is_known:
            return
        if not is_known or tuple(self.min_val.shape) != tuple(grid):
            raise CalibrationError(
                f"the observed tensor has {_count_text(grid)} blocks, earlier ones had {self.min_val.numel()}",
                where=self.where,
                found=f"shape {tuple(map(str, shape))}, {self.granularity}: blocks {tuple(map(str, grid))}",
                expected=f"blocks {tuple(self.min_val.shape)}",
                remedy="calibrate with tensors of one shape, or choose PerTensor, PerAxis or a dynamic PerToken",
            )

    def _store(self, low: Tensor, high: Tensor) -> None:
        self.min_val.resize_(low.shape).copy_(low)
        self.max_val.resize_(high.shape).copy_(high)

    def reset_min_max_vals(self) -> None:
        """Forget what was observed."""
        self.min_val.resize_(0)
        self.max_val.resize_(0)

    def _load_from_state_dict(
        self, state_dict: Mapping[str, Tensor], prefix: str, *args: Any, **kwargs: Any
    ) -> None:  # Any: arguments of torch's hook
        for name in ("min_val", "max_val"):
            saved = state_dict.get(prefix + name)
            if saved is not None:
                getattr(self, name).resize_(saved.shape)
        super()._load_from_state_dict(state_dict, prefix, *args, **kwargs)

    def extra_repr(self) -> str:
        """Scheme, dtype, granularity and range."""
        return f"{self.mapping_type.name}, {self.target_dtype}, {self.granularity}, {self.quant_min}..{self.quant_max}"


def _count_text(grid: Sequence[Size]) -> str:
    """Number of blocks of a grid in words."""
    return str(math.prod(grid)) if all(isinstance(size, int) for size in grid) else "an unknown number of"


def _unsupported(owner: type, found: str, expected: str) -> SpecError:
    return SpecError(
        f"{owner.__name__} does not support this scheme", found=found, expected=expected, remedy="choose another scheme"
    )


class AffineQuantizedMinMaxObserver(AffineQuantizedObserverBase):
    """Range from the smallest to the largest value seen in each block.

    Args: as `AffineQuantizedObserverBase`.
    """

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, of any shape that the granularity fits; return it."""
        if x.numel() == 0:
            return x
        low, high = self._limits(x)
        if self.has_observed:
            low, high = torch.minimum(self.min_val, low), torch.maximum(self.max_val, high)
        self._store(low, high)
        return x


class AffineQuantizedMovingAverageMinMaxObserver(AffineQuantizedObserverBase):
    """Range from exponential averages of each batch's smallest and largest value in each block.

    Args:
        averaging_constant: weight of the newest batch, 0 < c <= 1. The first batch sets the average.
        others: as `AffineQuantizedObserverBase`; dynamic only with `averaging_constant=1`.
    """

    def __init__(
        self,
        mapping_type: MappingType,
        target_dtype: torch.dtype | TorchAODType,
        granularity: Granularity,
        averaging_constant: float = 0.01,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float | None = None,
        is_dynamic: bool = False,
        scale_dtype: torch.dtype | None = None,
        zero_point_dtype: torch.dtype | None = None,
        preserve_zero: bool = True,
        zero_point_domain: ZeroPointDomain | None = ZeroPointDomain.INT,
        **unused: object,
    ) -> None:
        check_averaging(type(self), averaging_constant, is_dynamic)
        super().__init__(
            mapping_type,
            target_dtype,
            granularity,
            quant_min,
            quant_max,
            eps,
            scale_dtype,
            zero_point_dtype,
            preserve_zero,
            zero_point_domain,
            is_dynamic,
            **unused,
        )
        self.averaging_constant = averaging_constant

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, of any shape that the granularity fits; return it."""
        if x.numel() == 0:
            return x
        if self.is_dynamic:  # only the newest input counts, and its shape may be new
            self.reset_min_max_vals()
        low, high = self._limits(x)
        if self.has_observed:
            low = self.min_val + self.averaging_constant * (low - self.min_val)
            high = self.max_val + self.averaging_constant * (high - self.max_val)
        self._store(low, high)
        return x


class AffineQuantizedPlaceholderObserver(AffineQuantizedObserverBase):
    """Describes a dynamic scheme (per tensor, token or block) to convert; observes nothing.

    Args: as `AffineQuantizedObserverBase`, in the order that PT2E users pass them.
    """

    def __init__(
        self,
        mapping_type: MappingType,
        target_dtype: torch.dtype | TorchAODType,
        granularity: Granularity,
        quant_min: int | None = None,
        quant_max: int | None = None,
        eps: float | None = None,
        is_dynamic: bool = False,
        scale_dtype: torch.dtype | None = None,
        zero_point_dtype: torch.dtype | None = None,
        preserve_zero: bool = True,
        zero_point_domain: ZeroPointDomain | None = ZeroPointDomain.INT,
        **unused: object,
    ) -> None:
        super().__init__(
            mapping_type,
            target_dtype,
            granularity,
            quant_min,
            quant_max,
            eps,
            scale_dtype,
            zero_point_dtype,
            preserve_zero,
            zero_point_domain,
            is_dynamic,
            **unused,
        )

    def forward(self, x: Tensor) -> Tensor:
        """Return `x`."""
        return x
