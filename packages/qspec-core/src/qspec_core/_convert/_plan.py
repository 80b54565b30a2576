"""Decide the converted form of every observer, before the graph is written."""

import warnings
from collections.abc import Container, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import Node

from qspec_core import ops
from qspec_core._convert._parameters import has_observed, inner_observer, qparams
from qspec_core._errors import module_path
from qspec_core.graph import require_tensor_value
from qspec_core.observers import ConvertedForm, ObserverNeverRanWarning, Step
from qspec_core.observers._histogram import searched_together

__all__ = ["ObserverCall", "plan_forms"]

_PLAIN_DTYPES: Mapping[torch.dtype, torch.dtype] = {
    torch.qint8: torch.int8,
    torch.quint8: torch.uint8,
    torch.qint32: torch.int32,
}

_CASTS = (torch.float16, torch.bfloat16)

_PER_CHANNEL = (torch.per_channel_affine, torch.per_channel_symmetric, torch.per_channel_affine_float_qparams)

_DYNAMIC_EPS = 2.0**-12  # smallest scale, for an observer without an `eps` of its own


class ObserverCall(NamedTuple):
    """A node that calls an observer.

    Args:
        name: the node's name, with the prefix of its body.
        node: the node.
        observer: the observer.
        constant: the tensor observed, if it is a constant.
    """

    name: str
    node: Node
    observer: nn.Module
    constant: Tensor | None


def plan_forms(calls: Sequence[ObserverCall], unseen: Container[int]) -> dict[int, ConvertedForm | torch.dtype]:
    """Decide the converted form of every observer. All errors and warnings about observers are raised here.

    Args:
        calls: the calls of observers.
        unseen: identities of the observers that saw no data before they observed their constants.
    Returns: a form for each observer, by its identity; for a cast, the dtype.
    """
    plan: dict[int, ConvertedForm | torch.dtype] = {}
    idle: list[str] = []
    with searched_together(inner_observer(call.observer) for call in calls), warnings.catch_warnings():
        warnings.simplefilter("ignore", ObserverNeverRanWarning)
        for name, node, observer, value in calls:
            if id(observer) in plan:
                continue
            if id(observer) in unseen and not has_observed(observer):
                idle.append(f"{name} in {module_path(node)}" if module_path(node) else name)
            own = getattr(observer, "converted_form", None)
            plan[id(observer)] = own(_shape(node, value)) if callable(own) else _form(node, observer)
    if idle:
        shown = ", ".join(idle[:5]) + (f" and {len(idle) - 5} more" if len(idle) > 5 else "")
        warnings.warn(
            f"{len(idle)} observers saw no data; scale 1.0 and zero point 0 are used at {shown}. "
            "Run the prepared module on calibration data before convert_pt2e.",
            ObserverNeverRanWarning,
            stacklevel=3,
        )
    return plan


def _shape(node: Node, value: Tensor | None) -> torch.Size:
    """Shape of the observed tensor; sizes may be symbolic."""
    return (require_tensor_value(node) if value is None else value).shape


def _form(node: Node, observer: nn.Module) -> ConvertedForm | torch.dtype:
    """The converted form of an observer that has no method `converted_form`; for a cast, the dtype."""
    dtype = observer.dtype
    plain = _PLAIN_DTYPES.get(dtype, dtype)  # type: ignore[call-overload]  # an observer's dtype is a torch.dtype
    if plain in (*_CASTS, torch.float32):
        cast: torch.dtype = plain
        return cast
    low, high = getattr(observer, "quant_min", None), getattr(observer, "quant_max", None)
    if low is None or high is None:
        natural = torch.iinfo(plain)
        low, high = natural.min if low is None else low, natural.max if high is None else high
    limits = int(low), int(high), plain
    if getattr(observer, "is_dynamic", False):
        eps = getattr(inner_observer(observer), "eps", None)
        is_symmetric = getattr(observer, "qscheme", None) == torch.per_tensor_symmetric
        chooser = ops.CHOOSE_QPARAMS_SYMMETRIC if is_symmetric else ops.CHOOSE_QPARAMS
        choose = Step(chooser, (*limits[:2], _DYNAMIC_EPS if eps is None else float(eps), plain))
        return ConvertedForm(ops.QUANTIZE_DYNAMIC, ops.DEQUANTIZE_DYNAMIC, plain, limits, choose=choose)
    is_per_channel = getattr(observer, "qscheme", None) in _PER_CHANNEL
    scale, zero_point = qparams(node, observer, is_per_channel=is_per_channel)
    if not is_per_channel:
        return ConvertedForm(ops.QUANTIZE, ops.DEQUANTIZE, plain, limits, float(scale), int(zero_point))
    arguments = getattr(inner_observer(observer), "ch_axis", 0), *limits
    operators = ops.QUANTIZE_PER_CHANNEL, ops.DEQUANTIZE_PER_CHANNEL
    return ConvertedForm(*operators, plain, arguments, scale.float(), zero_point)
