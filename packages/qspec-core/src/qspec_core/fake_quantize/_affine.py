"""Fake-quantize of one range a block."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from qspec_core._errors import SourceLocation, SpecError
from qspec_core.fake_quantize._base import KeepsParameters
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
from qspec_core.observers._blocks import is_rounded_last, join_blocks, split_blocks
from qspec_core.observers._constructor import construct

__all__ = [
    "AffineFakeQuantize",
    "default_affine_fake_quant",
    "default_affine_per_axis_fake_quant",
    "default_groupwise_fake_quant",
]


def _round_through(x: Tensor) -> Tensor:
    """Round; the gradient passes as if nothing had happened."""
    return x + (torch.round(x) - x).detach()


class AffineFakeQuantize(KeepsParameters):
    """Observes, and rounds each block to the values that its observed range gives, as the converted model will. The
    gradient passes where the value lies within the range.

    Buffers: `scale` and `zero_point`, one a block, of the observer's dtypes. `block_size` is the size of the blocks of
    the last tensor that was given, None before the first.

    Args:
        observer: constructor of an affine observer that observes.
        is_dynamic: scale and zero point are those of each input; the observer must be a moving average of constant 1.
        observer_kwargs: further keywords of the observer.
    Raises: SpecError: the observer is another one, or refuses its arguments.
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
                "AffineFakeQuantize needs an affine observer that observes",
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
        """Place in the model; the observer's, which names it in errors."""
        return self.activation_post_process.where

    @where.setter
    def where(self, place: SourceLocation | None) -> None:
        self.activation_post_process.where = place

    @property
    def has_observed(self) -> bool:
        """Whether the observer has seen data."""
        return self.activation_post_process.has_observed

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """The observer's scale and zero point, one a block."""
        return self.activation_post_process.calculate_qparams()

    def converted_form(self, shape: Sequence[int | torch.SymInt]) -> ConvertedForm:
        """As the observer is converted."""
        return self.activation_post_process.converted_form(shape)

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, of any shape that the granularity fits, and return it rounded to quantized values."""
        inner = self.activation_post_process
        if x.numel() == 0:
            return x
        shape, block = tuple(x.shape), get_block_size(x.shape, inner.granularity)
        self.block_size = tuple(int(size) for size in block)
        if self.observer_enabled.item():
            inner(x)
            self.take_observed()
        if not self.fake_quant_enabled.item() or not inner.has_observed:
            return x
        form = inner.converted_form(shape)
        blocks = x.to(torch.float32)
        for step in split_blocks(shape, block):
            blocks = step(blocks)
        # Copies: the gradient needs those of this forward when the next has set others.
        scale, zero_point = (value.clone().reshape((*blocks.shape[:-1], 1)) for value in (self.scale, self.zero_point))
        quantized = blocks * (1.0 / scale)
        if is_rounded_last(form):
            quantized = _round_through(quantized + zero_point)
        else:
            quantized = _round_through(quantized) + zero_point
        rounded: Tensor = (quantized.clamp(self.quant_min, self.quant_max) - zero_point) * scale
        for step in join_blocks(shape, block):
            rounded = step(rounded)
        return rounded.to(x.dtype)

    def extra_repr(self) -> str:
        """What it rounds to, and its switches."""
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
