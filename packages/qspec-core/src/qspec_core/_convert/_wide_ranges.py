"""Remarks in the coverage about activations whose range is far wider than the spread of their values."""

import math
import warnings
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch.fx import GraphModule

from qspec_core._convert._parameters import inner_observer
from qspec_core._convert._plan import ObserverCall
from qspec_core._coverage import COVERAGE_KEY, Coverage, CoverageStatus
from qspec_core.observers import ConvertedForm

__all__ = ["WideRangeWarning", "note_wide_ranges"]

_WIDEST = 255 * math.sqrt(12) / 10
"""Standard deviations in the widest range without a remark: 88. The error of rounding to 256 values is a tenth of the
standard deviation then, 20 dB."""
_REMARK = "wide range"


class WideRangeWarning(UserWarning):
    """Static ranges of activations are far wider than the spread of the values, so that few integers are used."""


class _WideRange(NamedTuple):
    producer: str
    readers: tuple[str, ...]
    width: float
    spread: float

    def __str__(self) -> str:
        return f"{self.width:.3g} at a standard deviation of {self.spread:.2g}"


def note_wide_ranges(
    converted: GraphModule, calls: Sequence[ObserverCall], plan: Mapping[int, ConvertedForm | torch.dtype]
) -> None:
    """Add a remark to the coverage of each quantized operator whose result has a wide static range, or that reads a
    value with one from an operator in float or an input.

    Args:
        converted: the converted module; its `meta` gets another coverage if there is a wide range.
        calls: the calls of observers in the prepared module.
        plan: the converted form of each observer, by its identity.
    Warns: WideRangeWarning: once, with the widest range.
    Cost: O(calls), and O(bins) for each histogram.
    """
    found = list(_wide_ranges(calls, plan))
    if not found or COVERAGE_KEY not in converted.meta:
        return
    entries = {entry.node: entry for entry in Coverage.from_dict(converted.meta[COVERAGE_KEY])}
    noted = 0
    for each in found:
        for role, names in (("its result", (each.producer,)), (f"{each.producer}, which it reads,", each.readers)):
            quantized = [n for n in names if n in entries and entries[n].status is CoverageStatus.QUANTIZED]
            for name in quantized:
                entries[name] = entries[name].with_remark(_REMARK, f"{role} has a range of {each}")
            if quantized:
                noted += 1
                break
    if not noted:
        return
    converted.meta[COVERAGE_KEY] = Coverage(tuple(entries.values())).to_dict()
    widest = max(found, key=lambda each: each.width / each.spread)
    warnings.warn(
        f"static ranges of more than {_WIDEST:.0f} standard deviations of the values: {noted}. The widest is that of "
        f"{widest.producer}, {widest}: most values share few integers. Quantize the operators that coverage() names "
        "dynamically, or leave them in float.",
        WideRangeWarning,
        stacklevel=3,
    )


def _wide_ranges(
    calls: Sequence[ObserverCall], plan: Mapping[int, ConvertedForm | torch.dtype]
) -> Iterator[_WideRange]:
    for name, node, observer, constant in calls:
        form = plan[id(observer)]
        spread = getattr(inner_observer(observer), "spread", None)
        if constant is not None or not spread or not isinstance(form, ConvertedForm):
            continue
        if not isinstance(form.scale, float):
            continue
        low, high = form.limits[:2]
        width = form.scale * (int(high) - int(low))  # type: ignore[arg-type]  # limits of integers
        if width > _WIDEST * spread:
            prefix = name.removesuffix(node.name)
            readers = tuple(f"{prefix}{user.name}" for user in node.users)
            yield _WideRange(f"{prefix}{node.all_input_nodes[0].name}", readers, width, spread)
