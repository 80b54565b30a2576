"""Affine fake-quantize: one range for each block of a tensor."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qspec_core._errors import SourceLocation, SpecError
from qspec_core.fake_quantize._base import FakeQuantizeWithQParams
from qspec_core.observers import (
    AffineQuantizedMinMaxObserver,
    AffineQuantizedObserverBase,
    AffineQuantizedPlaceholderObserver,
    ConvertedForm,
    MappingType,
    PerAxis,
    PerGroup,
    PerTensor,
    get_block_size,
)
from qspec_core.observers._blocks import adds_zero_point_before_rounding, join_blocks, split_blocks
from qspec_core.observers._constructor import construct

__all__ = [
    "AffineFakeQuantize",
    "default_affine_fake_quant",
    "default_affine_per_axis_fake_quant",
    "default_groupwise_fake_quant",
]


def _round_through(x: Tensor) -> Tensor:
    """Round, with the gradient of the identity (straight-through estimator)."""
    return x + (torch.round(x) - x).detach()


class AffineFakeQuantize(FakeQuantizeWithQParams):
    """Observes, and rounds each block to its quantized values, as the converted model does.

    The gradient passes where the value lies within the range.

    Buffers: `scale` and `zero_point`, one value for each block, of the observer's dtypes. `block_size` is the size of
    the blocks of the last input, None before the first.

    Args:
        observer: constructor of an affine observer; not of a placeholder.
        is_dynamic: scale and zero point are those of each input, also while observing is switched off; the observer
            must be a moving average of constant 1.
        observer_kwargs: further keywords of the observer.
    Raises: SpecError: the observer is of another kind, or refuses its arguments.
    """

    def __init__(
        self,
        observer: Callable[..., object] = AffineQuantizedMinMaxObserver,
        is_dynamic: bool = False,
        **observer_kwargs: Any,  # those of whichever observer is wrapped
    ) -> None:
        super().__init__()
        inner = construct(observer, {**observer_kwargs, "is_dynamic": is_dynamic or None})
        if not isinstance(inner, AffineQuantizedObserverBase) or isinstance(inner, AffineQuantizedPlaceholderObserver):
            raise SpecError(
                "AffineFakeQuantize needs an affine observer that is not a placeholder",
                found=type(inner).__name__,
                expected="AffineQuantizedMinMaxObserver or AffineQuantizedMovingAverageMinMaxObserver",
                remedy="use FakeQuantize for another observer",
            )
        self.activation_post_process: AffineQuantizedObserverBase = inner
        self.dtype, self.is_dynamic = inner.dtype, inner.is_dynamic
        self.quant_min, self.quant_max = inner.quant_min, inner.quant_max
        self.target_dtype, self.granularity = inner.target_dtype, inner.granularity
        self.mapping_type, self.zero_point_domain = inner.mapping_type, inner.zero_point_domain
        self.block_size: tuple[int, ...] | None = None
        self.register_buffer("scale", torch.ones(1, dtype=inner.scale_dtype))
        self.register_buffer("zero_point", torch.zeros(1, dtype=inner.zero_point_dtype))

    @property
    def where(self) -> SourceLocation | None:
        """Place in the model, stored in the observer, which names it in errors."""
        return self.activation_post_process.where

    @where.setter
    def where(self, place: SourceLocation | None) -> None:
        self.activation_post_process.where = place

    @property
    def has_observed(self) -> bool:
        """Whether the observer has seen data."""
        return self.activation_post_process.has_observed

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The observer's scale and zero point of each block."""
        return self.activation_post_process.calculate_qparams()

    def converted_form(self, shape: Sequence[int | torch.SymInt]) -> ConvertedForm:
        """The converted form of the observer."""
        return self.activation_post_process.converted_form(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, of any shape that the granularity fits, and return it rounded to quantized values."""
        inner = self.activation_post_process
        if x.numel() == 0:
            return x
        shape, block = tuple(x.shape), get_block_size(x.shape, inner.granularity)
        self.block_size = tuple(int(size) for size in block)
        if self.is_dynamic or self.observer_enabled.item():
            inner(x)
            self.update_qparams()
        if not self.fake_quant_enabled.item() or not inner.has_observed:
            return x
        form = inner.converted_form(shape)
        blocks = x.to(torch.float32)
        for step in split_blocks(shape, block):
            blocks = step(blocks)
        # (blocks,) -> (blocks along each dimension..., 1). Copied: backward needs the values of this forward, and the
        # next forward writes to the buffers.
        scale, zero_point = (value.clone().reshape((*blocks.shape[:-1], 1)) for value in (self.scale, self.zero_point))
        quantized = blocks * (1.0 / scale)
        if adds_zero_point_before_rounding(form):
            quantized = _round_through(quantized + zero_point)
        else:
            quantized = _round_through(quantized) + zero_point
        rounded: Tensor = (quantized.clamp(self.quant_min, self.quant_max) - zero_point) * scale
        for step in join_blocks(shape, block):
            rounded = step(rounded)
        return rounded.to(x.dtype)

    def extra_repr(self) -> str:
        """Range, dtype, parameters and switches."""
        return (
            f"fake_quant_enabled={self.fake_quant_enabled}, observer_enabled={self.observer_enabled}, "
            f"quant_min={self.quant_min}, quant_max={self.quant_max}, target_dtype={self.target_dtype}, "
            f"granularity={self.granularity}, mapping_type={self.mapping_type}, "
            f"zero_point_domain={self.zero_point_domain}, block_size={self.block_size}, scale={self.scale}, "
            f"zero_point={self.zero_point}"
        )


default_affine_fake_quant = AffineFakeQuantize.with_args(
    observer=AffineQuantizedMinMaxObserver,
    mapping_type=MappingType.ASYMMETRIC,
    target_dtype=torch.uint8,
    granularity=PerTensor(),
)
default_groupwise_fake_quant = AffineFakeQuantize.with_args(
    observer=AffineQuantizedMinMaxObserver,
    mapping_type=MappingType.SYMMETRIC,
    target_dtype=torch.int8,
    granularity=PerGroup(128),
)
default_affine_per_axis_fake_quant = AffineFakeQuantize.with_args(
    observer=AffineQuantizedMinMaxObserver,
    mapping_type=MappingType.SYMMETRIC,
    target_dtype=torch.int8,
    granularity=PerAxis(0),
)
