"""Merge the observers of several processes, each calibrated on a part of the data."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, distributed, nn

from qspec_core._errors import CalibrationError
from qspec_core.observers._affine import (
    AffineQuantizedMovingAverageMinMaxObserver,
    AffineQuantizedObserverBase,
)
from qspec_core.observers._base import ObserverBase, UniformQuantizationObserverBase
from qspec_core.observers._histogram import HistogramObserver
from qspec_core.observers._minmax import MovingAverageMinMaxObserver
from qspec_core.observers._per_channel import MovingAveragePerChannelMinMaxObserver

__all__ = ["share_ranges", "sync_observers"]

_AVERAGES = (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    AffineQuantizedMovingAverageMinMaxObserver,
)
_Ranged = UniformQuantizationObserverBase | AffineQuantizedObserverBase


@dataclass(frozen=True)
class _Entry:
    """Description of one observer that the processes compare before any observer changes."""

    name: str
    kind: str
    settings: tuple[str, ...]
    shape: tuple[int, ...]
    refusal: str | None = None


def sync_observers(module: nn.Module, group: "distributed.ProcessGroup | None" = None) -> None:
    """Merge the observers of all processes of a group, in place. Every process of the group must call it.

    Min-max observers and histograms become bit for bit those of one process that saw all of the data. Moving averages
    depend on the order of the data, which is not defined across processes: they become the mean of the averages of
    all processes that saw data, with equal weights. Fake-quantizes take the new scale and zero point, except while
    they learn them. Observers that need no data stay as they are.

    Args:
        module: the prepared model, prepared in the same way on every process.
        group: the process group; None for the default one.
    Raises: CalibrationError, on every process of the group: the observers of the processes differ, an observer is of a
        class that cannot be merged, or there is no process group.
    Cost: one exchange of descriptions and at most four reductions, for any number of observers.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise CalibrationError(
            "there is no process group to synchronize observers in",
            remedy="launch with torchrun and call torch.distributed.init_process_group() first",
        )
    named = _mergeable(module)
    observers = [observer for _, observer in named]
    descriptions = _exchange([_describe(*entry) for entry in named] + _refusals(module), group)
    _require_equal(descriptions)
    for index, observer in enumerate(observers):
        _fill_with_empty_ranges(
            observer, max((description[index].shape for description in descriptions), key=math.prod)
        )
    with torch.no_grad():
        _merge([observer for observer in observers if not isinstance(observer, _AVERAGES)], group)
        _average([observer for observer in observers if isinstance(observer, _AVERAGES)], group)
    merged = {id(observer) for observer in observers if observer.has_observed}
    for part in module.modules():
        refresh = getattr(part, "update_qparams", None)
        if callable(refresh) and id(getattr(part, "activation_post_process", None)) in merged:
            refresh()


def share_ranges(module: nn.Module, *, enabled: bool = True) -> int:
    """Let moving averages observe each batch of all processes together, as one process with the whole batch would.

    For training with `DistributedDataParallel`: every process of the default group must run the same forwards. Moving
    averages of blocks (`AffineQuantizedMovingAverageMinMaxObserver`) observe weights, which are the same everywhere.

    Args:
        module: from `prepare_qat_pt2e`, before or after it is wrapped.
        enabled: False ends it, for example to evaluate on one process.
    Returns: how many observers it switched.
    Raises: CalibrationError: there is no process group.
    Cost: one small reduction for each observer and forward.
    """
    if enabled and not (distributed.is_available() and distributed.is_initialized()):
        raise CalibrationError(
            "there is no process group to share ranges in",
            remedy="launch with torchrun and call torch.distributed.init_process_group() first",
        )
    kinds = MovingAverageMinMaxObserver, MovingAveragePerChannelMinMaxObserver
    found = [part for part in module.modules() if isinstance(part, kinds)]
    for observer in found:
        observer.reduces_over_processes = enabled
    return len(found)


def _mergeable(module: nn.Module) -> list[tuple[str, _Ranged]]:
    """The observers that hold a range and their names, each once, in the order of the module's submodules."""
    return [(name, part) for name, part in module.named_modules() if isinstance(part, _Ranged)]


def _refusals(module: nn.Module) -> list[_Entry]:
    """Entries for observers that are not of qspec and cannot be merged. One that wraps another observer is skipped."""
    return [
        _Entry(name, type(part).__qualname__, (), (), "is not of qspec, so its state cannot be merged")
        for name, part in module.named_modules()
        if callable(getattr(part, "calculate_qparams", None))
        and not isinstance(part, ObserverBase)
        and not isinstance(getattr(part, "activation_post_process", None), nn.Module)
    ]


def _describe(name: str, observer: _Ranged) -> _Entry:
    fields = [
        *("dtype", "qscheme", "quant_min", "quant_max", "bins", "ch_axis", "averaging_constant"),
        *("mapping_type", "target_dtype", "granularity"),
    ]
    settings = tuple(f"{field}={getattr(observer, field)}" for field in fields if hasattr(observer, field))
    kind = f"{type(observer).__module__}.{type(observer).__qualname__}"
    return _Entry(name, kind, settings, tuple(observer.min_val.shape))


def _exchange(entries: list[_Entry], group: "distributed.ProcessGroup | None") -> list[list[_Entry]]:
    gathered: list[list[_Entry]] = [[] for _ in range(distributed.get_world_size(group))]
    distributed.all_gather_object(gathered, entries, group=group)
    return gathered


def _require_equal(descriptions: Sequence[Sequence[_Entry]]) -> None:
    """Check that all processes have the same observers. All processes see the same entries, so all raise or none does.

    Raises: CalibrationError: they differ, or an observer cannot be merged.
    """
    for entry in (entry for description in descriptions for entry in description if entry.refusal is not None):
        raise CalibrationError(
            f"the observer {entry.name} {entry.refusal}",
            found=entry.kind,
            remedy="use an observer of qspec, or synchronize this one yourself",
        )
    first = descriptions[0]
    for rank, other in enumerate(descriptions):
        if len(other) != len(first):
            _reject(rank, f"{len(other)} observers", f"{len(first)}, as on rank 0")
        for mine, theirs in zip(first, other, strict=True):
            if (mine.name, mine.kind, mine.settings) != (theirs.name, theirs.kind, theirs.settings):
                _reject(rank, _entry_text(theirs), f"{_entry_text(mine)}, as on rank 0")
    for entries in zip(*descriptions, strict=True):
        known = next((entry for entry in entries if math.prod(entry.shape)), entries[0])
        for rank, entry in enumerate(entries):
            if entry.shape not in ((0,), known.shape):
                _reject(rank, f"ranges of shape {entry.shape} at {entry.name}", f"{known.shape}, as on another rank")


def _entry_text(entry: _Entry) -> str:
    return f"{entry.name}: {entry.kind.rpartition('.')[2]}({', '.join(entry.settings)})"


def _reject(rank: int, found: str, expected: str) -> None:
    raise CalibrationError(
        "the processes have different observers",
        found=f"{found}, on rank {rank}",
        expected=expected,
        remedy="prepare the same model with the same quantizer on every process",
    )


def _fill_with_empty_ranges(observer: _Ranged, shape: tuple[int, ...]) -> None:
    """Give an observer without data empty ranges, as many as on the other processes."""
    if observer.min_val.shape != shape:
        observer.min_val.resize_(shape).fill_(math.inf)
        observer.max_val.resize_(shape).fill_(-math.inf)


def _device(group: "distributed.ProcessGroup | None") -> torch.device:
    """The device on which the group's backend reduces tensors."""
    accelerator = torch.accelerator.current_accelerator()
    is_on_cpu = any(name in str(distributed.get_backend(group)) for name in ("gloo", "mpi"))
    return torch.device("cpu") if is_on_cpu or accelerator is None else accelerator


def _reduce(
    tensors: Sequence[Tensor], operation: "distributed.ReduceOp.RedOpType", group: "distributed.ProcessGroup | None"
) -> None:
    """Reduce tensors of one dtype in place, in one exchange."""
    if not tensors:
        return
    joined = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(_device(group))
    distributed.all_reduce(joined, operation, group=group)
    parts = torch.split(joined, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.reshape(tensor.shape))


def _as_float64(observers: Sequence[_Ranged], value: Callable[[_Ranged], Tensor]) -> list[Tensor]:
    """One tensor of each observer, copied to the CPU in float64, which represents every buffer exactly."""
    return [value(observer).to("cpu", torch.float64, copy=True) for observer in observers]


def _min_val(observer: _Ranged) -> Tensor:
    return observer.min_val


def _max_val(observer: _Ranged) -> Tensor:
    return observer.max_val


def _merge(observers: Sequence[_Ranged], group: "distributed.ProcessGroup | None") -> None:
    """Take the smallest minimum and the largest maximum, and sum the histograms over bins that cover both."""
    least, most = _as_float64(observers, _min_val), _as_float64(observers, _max_val)
    _reduce([*least, *(tensor.neg_() for tensor in most)], distributed.ReduceOp.MIN, group)
    counts: list[Tensor] = []
    for observer, low, high in zip(observers, least, most, strict=True):
        high.neg_()
        if isinstance(observer, HistogramObserver):
            counts += observer.cover(low.item(), high.item())
        observer.min_val.copy_(low)
        observer.max_val.copy_(high)
    summed = [tensor.cpu() for tensor in counts]
    _reduce(summed, distributed.ReduceOp.SUM, group)
    for tensor, total in zip(counts, summed, strict=True):
        tensor.copy_(total)


def _average(observers: Sequence[_Ranged], group: "distributed.ProcessGroup | None") -> None:
    """Average over the processes that saw data, channel by channel: a channel without data has an empty range."""
    least, most = _as_float64(observers, _min_val), _as_float64(observers, _max_val)
    seen = [(low <= high).to(torch.float64) for low, high in zip(least, most, strict=True)]
    for limits in (least, most):
        for limit, has_data in zip(limits, seen, strict=True):
            limit[has_data == 0] = 0.0
    _reduce([*least, *most, *seen], distributed.ReduceOp.SUM, group)
    for observer, low, high, number in zip(observers, least, most, seen, strict=True):
        observer.min_val.copy_(torch.where(number > 0, low / number, math.inf))
        observer.max_val.copy_(torch.where(number > 0, high / number, -math.inf))
