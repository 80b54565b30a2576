"""Configurations that XNNPACK's kernels take."""

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from qspec_core import QuantizationConfig, QuantizationSpec, SpecError
from qspec_core.fake_quantize import (
    AffineFakeQuantize,
    FakeQuantize,
    FusedMovingAvgObsFakeQuantize,
    LearnableFakeQuantize,
)
from qspec_core.observers import (
    AffineQuantizedMinMaxObserver,
    AffineQuantizedMovingAverageMinMaxObserver,
    MappingType,
    MinMaxObserver,
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    PartialWrapper,
    PerChannelMinMaxObserver,
    PerChannelMSEObserver,
    PerGroup,
    PerTensor,
    PerToken,
    PlaceholderObserver,
)
from qspec_core.patterns import Mode
from qspec_xnnpack._rows._specs import FOUR_BITS, granularity, group_size, has_four_bits

__all__ = ["fit", "get_symmetric_quantization_config"]

_SMALLEST_SCALE = 2.0**-60
"""Smallest static activation scale: products of it with a weight's scale are still normal numbers."""
_SCALE_OF_ZEROS = 2.0**-12
"""Scale of an activation that was always 0. A tiny one would be far from those of the tensors around it."""
_WHOLE = (-128, 127)
_GROUPS = 32


class ActivationObserver(MinMaxObserver):
    """Range from the smallest to the largest value seen; a scale of 2**-12 if all were 0.

    It also keeps the mean and the spread of the values, for the coverage. They are no buffers: a saved observer loses
    them.
    """

    _moments: tuple[int, float, float] = (0, 0.0, 0.0)
    """Number of values, their mean, and the sum of the squares of their distances from it."""

    def forward(self, x: Tensor) -> Tensor:
        """Observe `x`, of any shape; return it."""
        super().forward(x)
        if x.numel():
            variance, mean = (v.item() for v in torch.var_mean(x.detach().float(), dim=None, correction=0))
            count, before, squares = self._moments
            total, added = count + x.numel(), x.numel()
            # Moments of two sets joined: Chan, Golub, LeVeque, "Updating formulae", 1979, equations 2.1.
            squares += variance * added + (mean - before) ** 2 * count * added / total
            self._moments = total, before + (mean - before) * added / total, squares
        return x

    @property
    def spread(self) -> float | None:
        """Standard deviation of all values seen; None before any."""
        count, _, squares = self._moments
        return math.sqrt(squares / count) if count else None

    def reset_min_max_vals(self) -> None:
        """Forget what was observed."""
        super().reset_min_max_vals()
        self._moments = 0, 0.0, 0.0

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, of shape (1,)."""
        scale, zero_point = super().calculate_qparams()
        is_zero = (self.min_val == 0) & (self.max_val == 0)
        return torch.where(is_zero, torch.full_like(scale, _SCALE_OF_ZEROS), scale), zero_point


class TrainedActivationObserver(MovingAverageMinMaxObserver):
    """A moving average of ranges; a scale of 2**-12 if all values were 0."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point, of shape (1,)."""
        scale, zero_point = super().calculate_qparams()
        is_zero = (self.min_val == 0) & (self.max_val == 0)
        return torch.where(is_zero, torch.full_like(scale, _SCALE_OF_ZEROS), scale), zero_point


class TrainedGroupObserver(AffineQuantizedMovingAverageMinMaxObserver):
    """Range of each group of the newest weights. Scales are rounded to bfloat16, as the delegate stores them."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each group, (out_features, in_features / group_size)."""
        scale, zero_point = super().calculate_qparams()
        return scale.to(torch.bfloat16).to(scale.dtype), zero_point


class GroupObserver(AffineQuantizedMinMaxObserver):
    """Range of each group of weights. Scales are rounded to bfloat16, as the delegate stores them."""

    def calculate_qparams(self) -> tuple[Tensor, Tensor]:
        """Scale and zero point of each group, (out_features, in_features / group_size)."""
        scale, zero_point = super().calculate_qparams()
        return scale.to(torch.bfloat16).to(scale.dtype), zero_point


@lru_cache
def get_symmetric_quantization_config(
    is_per_channel: bool = False,
    is_qat: bool = False,
    is_dynamic: bool = False,
    act_qmin: int = -128,
    act_qmax: int = 127,
    weight_qmin: int = -127,
    weight_qmax: int = 127,
    *,
    group_size: int | None = None,
    learnable: bool = False,
) -> QuantizationConfig:
    """Configuration for XNNPACK: int8 affine activations, symmetric int8 or 4-bit weights, float biases.

    Weights in -8..7 are stored in 4 bits. Only linear layers take them, and only in dynamic quantization.

    Args:
        is_per_channel: one scale for each output channel of a weight instead of one for the whole weight.
        is_qat: for training with `prepare_qat_pt2e`: values are rounded while the model trains.
        is_dynamic: activation parameters are computed when the model runs.
        act_qmin: smallest quantized activation.
        act_qmax: largest quantized activation.
        weight_qmin: smallest quantized weight.
        weight_qmax: largest quantized weight.
        group_size: number of weights along the input features that share a scale, a multiple of 32; 4-bit weights
            only.
        learnable: scales of static activations and of weights, and zero points, become parameters that training
            learns (LSQ+) once `enable_range_learning` is applied; only with `is_qat`, not for groups.
    Returns: the configuration; equal arguments give the same object.
    Raises: SpecError: a range is empty or outside int8, there is no kernel for the combination, or `learnable` is not
        possible.
    """
    if learnable and (not is_qat or group_size is not None):
        raise SpecError(
            "scales are learned in training only, and not for groups of weights",
            found=f"learnable=True, is_qat={is_qat}, group_size={group_size}",
            expected="is_qat=True, group_size=None",
            remedy="pass is_qat=True, and prepare with prepare_qat_pt2e",
        )
    observer: Any = PlaceholderObserver if is_dynamic else ActivationObserver.with_args(eps=_SMALLEST_SCALE)
    if is_qat:
        observer = _trained_activation(is_dynamic, learnable)
    activation = QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=observer,
        quant_min=act_qmin,
        quant_max=act_qmax,
        qscheme=torch.per_tensor_affine,
        is_dynamic=is_dynamic,
    )
    limits = (weight_qmin, weight_qmax)
    weight = _weight(is_per_channel, limits, group_size, _trained_weight if is_qat else _weight_observer, learnable)
    config = QuantizationConfig(activation, None if is_dynamic else activation, weight, None, is_qat=is_qat)
    return _combined(config)


def _trained_activation(is_dynamic: bool, learnable: bool) -> PartialWrapper:
    """Activations that are rounded in training: a moving average gives their range, or each input its own."""
    if is_dynamic:
        return FakeQuantize.with_args(observer=MovingAverageMinMaxObserver, averaging_constant=1.0, is_dynamic=True)
    return _trained(learnable).with_args(observer=TrainedActivationObserver, eps=_SMALLEST_SCALE)


def _trained(learnable: bool) -> PartialWrapper:
    """The fake-quantize of static values. Gradients of learned scales are scaled as LSQ needs for stable training."""
    if learnable:
        return LearnableFakeQuantize.with_args(use_grad_scaling=True)
    return FusedMovingAvgObsFakeQuantize.with_args()


_Weights = Callable[[bool, tuple[int, int], int | None, bool], PartialWrapper]


def _weight(
    is_per_channel: bool, limits: tuple[int, int], group: int | None, observer: _Weights, learnable: bool
) -> QuantizationSpec:
    by_channel = is_per_channel or group is not None
    return QuantizationSpec(
        dtype=torch.int8,
        observer_or_fake_quant_ctr=observer(is_per_channel, limits, group, learnable),
        quant_min=limits[0],
        quant_max=limits[1],
        qscheme=torch.per_channel_symmetric if by_channel else torch.per_tensor_symmetric,
        ch_axis=0 if by_channel else None,
    )


def _groups(group: int) -> dict[str, object]:
    return {
        "mapping_type": MappingType.SYMMETRIC,
        "target_dtype": torch.int8,
        "granularity": PerGroup(group),
    }


def _weight_observer(
    is_per_channel: bool, limits: tuple[int, int], group: int | None, learnable: bool
) -> PartialWrapper:
    del learnable  # for training only
    if group is not None:
        return GroupObserver.with_args(**_groups(group))
    if not is_per_channel:
        return MinMaxObserver.with_args()
    # With 15 levels, clipping the largest weights lowers the error.
    return (PerChannelMSEObserver if limits == FOUR_BITS else PerChannelMinMaxObserver).with_args()


def _trained_weight(
    is_per_channel: bool, limits: tuple[int, int], group: int | None, learnable: bool
) -> PartialWrapper:
    """Weights that are rounded in training. The newest weights alone give the range: they are known exactly."""
    del limits  # the spec has them
    if group is not None:
        return AffineFakeQuantize.with_args(observer=TrainedGroupObserver, averaging_constant=1.0, **_groups(group))
    observer = MovingAveragePerChannelMinMaxObserver if is_per_channel else MovingAverageMinMaxObserver
    return _trained(learnable).with_args(observer=observer.with_args(averaging_constant=1.0))


def fit(config: QuantizationConfig | None) -> QuantizationConfig | None:
    """Check that XNNPACK has kernels for a configuration, and return it.

    Raises: SpecError: it has none.
    """
    if config is None:
        return None
    for role, spec, schemes in (
        ("input activation", config.input_activation, (torch.per_tensor_affine, torch.per_tensor_symmetric)),
        ("output activation", config.output_activation, (torch.per_tensor_affine, torch.per_tensor_symmetric)),
        ("weight", config.weight, (torch.per_tensor_symmetric, torch.per_channel_symmetric)),
    ):
        if spec is not None and (spec.dtype is not torch.int8 or spec.qscheme not in schemes):
            raise _unfit(role, f"{spec.dtype}, {spec.qscheme}", f"torch.int8, {' or '.join(map(str, schemes))}")
        if spec is not None:
            _check_granularity(role, spec)
    if config.weight is not None and config.weight.ch_axis not in (None, 0):
        raise _unfit("weight", f"ch_axis={config.weight.ch_axis}", "ch_axis=0, the output channels")
    if config.bias is not None and config.bias.dtype is not torch.float32:
        raise _unfit("bias", config.bias.dtype, "no spec: the delegate quantizes biases itself")
    return _combined(config)


def _check_granularity(role: str, spec: QuantizationSpec) -> None:
    """Check that an activation has one scale, or one for each token if dynamic, and a weight one for all, for each
    channel or for each group."""
    own = PerGroup if role == "weight" else PerToken if spec.is_dynamic else PerTensor
    found = granularity(spec)
    if found is not None and not isinstance(found, PerTensor | own):
        raise _unfit(role, found, f"PerTensor or {own.__name__}" if own is not PerTensor else "PerTensor")


def _combined(config: QuantizationConfig) -> QuantizationConfig:
    """Check that the kernels take the specs of a configuration together, and return it."""
    activation, weight, mode = config.input_activation, config.weight, config.mode
    if mode is Mode.WEIGHT_ONLY:
        raise _unfit(
            "input activation",
            "none",
            "a static or dynamic spec: there is no kernel for integer weights and float activations",
        )
    if mode is Mode.DYNAMIC and activation is not None and activation.range != _WHOLE:
        raise _unfit("input activation", f"dynamic, {activation.range}", f"{_WHOLE}, which the delegate computes")
    if weight is None:
        return config
    group = group_size(weight)
    if group is not None and (group % _GROUPS != 0 or not has_four_bits(weight)):
        raise _unfit("weight", f"groups of {group}, {weight.range}", f"a multiple of {_GROUPS}, and {FOUR_BITS}")
    if mode is Mode.STATIC and (group is not None or has_four_bits(weight)):
        raise _unfit("weight", "4 bits, static", "8 bits, or is_dynamic=True")
    return config


def _unfit(role: str, found: object, expected: str) -> SpecError:
    return SpecError(
        f"XNNPACK has no kernel for the configuration's {role} spec",
        found=found,
        expected=expected,
        remedy="build the configuration with get_symmetric_quantization_config()",
    )
