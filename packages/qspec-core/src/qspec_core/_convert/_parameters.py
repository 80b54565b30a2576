"""Observer queries used by convert: whether they saw data, and their scale and zero point."""

import math

import torch
from torch import Tensor, nn
from torch.fx import Node

from qspec_core._errors import QSpecError, SpecError

__all__ = ["has_observed", "inner_observer", "qparams"]


def inner_observer(observer: nn.Module) -> nn.Module:
    """The observer inside a fake-quantize, or the observer itself."""
    inner = getattr(observer, "activation_post_process", None)
    return inner if isinstance(inner, nn.Module) else observer


def has_observed(observer: nn.Module) -> bool:
    """Whether an observer saw data, or needs none.

    An observer of another stack saw data if its range is not empty: before, it has no elements or the limits reversed.
    """
    inner = inner_observer(observer)
    found = getattr(inner, "has_observed", None)
    low, high = getattr(inner, "min_val", None), getattr(inner, "max_val", None)
    if found is None and isinstance(low, Tensor) and isinstance(high, Tensor):
        found = low.numel() > 0 and not bool((low > high).any())
    return found is None or bool(found) or bool(getattr(observer, "is_dynamic", False))


def qparams(node: Node, observer: nn.Module, *, is_per_channel: bool) -> tuple[Tensor, Tensor]:
    """Scale and zero point of an observer of any stack that has no method `converted_form`.

    Args:
        node: calls the observer; errors name its place.
        observer: has `calculate_qparams`, which may call code of a quantizer's author.
        is_per_channel: whether there may be more than one scale.
    Raises: SpecError: `calculate_qparams` fails, or gives scales that are not finite and positive, or several scales
            for one tensor.
    """
    try:
        scale, zero_point = observer.calculate_qparams()  # type: ignore[operator]  # is_observer held
        scale, zero_point = torch.as_tensor(scale), torch.as_tensor(zero_point)
    except QSpecError:
        raise
    except Exception as error:  # a derivation is its author's code, and may raise anything
        raise SpecError(
            f"{type(observer).__name__} could not compute scale and zero point",
            where=node,
            found=repr(error),
            expected="two tensors",
            remedy="correct the spec's derive_qparams_fn, or the observer's calculate_qparams",
        ) from error
    if not is_per_channel and (scale.numel(), zero_point.numel()) != (1, 1):
        raise SpecError(
            "a tensor that is quantized as a whole has several scales or zero points",
            where=node,
            found=f"{scale.numel()} scales, {zero_point.numel()} zero points from {type(observer).__name__}",
            expected="one of each, or a per-channel qscheme in the spec",
            remedy="give the spec qscheme=torch.per_channel_symmetric and ch_axis, or derive one scale",
        )
    if not _is_finite_and_positive(scale):
        raise SpecError(
            "a scale is not finite and positive",
            where=node,
            found=f"{scale.flatten()[:5].tolist()} from {type(observer).__name__}",
            expected="finite values above 0",
            remedy="correct the spec's derive_qparams_fn, or the observer's calculate_qparams",
        )
    return scale, zero_point


def _is_finite_and_positive(scale: Tensor) -> bool:
    if scale.numel() == 0:
        return True
    lowest, highest = (limit.item() for limit in torch.aminmax(scale))
    return 0.0 < lowest <= highest < math.inf  # aminmax gives NaN for both if a value is NaN
