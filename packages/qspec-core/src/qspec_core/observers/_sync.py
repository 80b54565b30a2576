"""Observers of several processes made to agree: calibration on parts of the data, parameters as over the whole."""

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

__all__ = ["sync_observers"]

_AVERAGES = (
    MovingAverageMinMaxObserver,
    MovingAveragePerChannelMinMaxObserver,
    AffineQuantizedMovingAverageMinMaxObserver,
)
_Ranged = UniformQuantizationObserverBase | AffineQuantizedObserverBase


@dataclass(frozen=True)
class _Entry:
    """What the processes compare of one observer before any of them changes: all that must be equal, and the shape
    of its range.
    """

    name: str
    kind: str
    settings: tuple[str, ...]
    shape: tuple[int, ...]
    refusal: str | None = None


def sync_observers(module: nn.Module, group: "distributed.ProcessGroup | None" = None) -> None:
    """Make the observers of all processes of a group agree, in place. Every process of the group must call it.

    Observers of minima and maxima and histograms come out, bit for bit, as in one process that saw the data of all.
    Moving averages depend on the order of the data, which the processes have none of: they come out as the mean of the
    processes' averages, each with the same weight, those without data left out. Fake-quantizes take the scale and zero
    point that follow, save while they learn them. Observers that need no data stay as they are.

    Args:
        module: prepared alike on every process.
        group: the process group; None for the default one.
    Raises: CalibrationError, on every process of the group: the processes have different observers, one of them is
        of a class that cannot be merged, or there is no process group.
    Cost: one exchange of descriptions and at most four reductions, whatever the number of observers.
    """
    if not (distributed.is_available() and distributed.is_initialized()):
        raise CalibrationError(
            "there is no process group to synchronize observers in",
            remedy="launch with torchrun and call torch.distributed.init_process_group() first",
        )
    named = _mergeable(module)
    observers = [observer for _, observer in named]
    descriptions = _exchange([_describe(*entry) for entry in named] + _refusals(module), group)
    _require_alike(descriptions)
    for index, observer in enumerate(observers):
        _widen(observer, max((description[index].shape for description in descriptions), key=math.prod))
    with torch.no_grad():
        _merge([observer for observer in observers if not isinstance(observer, _AVERAGES)], group)
        _average([observer for observer in observers if isinstance(observer, _AVERAGES)], group)
    merged = {id(observer) for observer in observers if observer.has_observed}
    for part in module.modules():
        refresh = getattr(part, "take_observed", None)
        if callable(refresh) and id(getattr(part, "activation_post_process", None)) in merged:
            refresh()


def _mergeable(module: nn.Module) -> list[tuple[str, _Ranged]]:
    """The observers that hold a range, by name, each once, in the order of the module's submodules."""
    return [(name, part) for name, part in module.named_modules() if isinstance(part, _Ranged)]


def _refusals(module: nn.Module) -> list[_Entry]:
    """Observers of other stacks, whose state has an unknown meaning. One that holds another observer has none."""
    return [
        _Entry(name, type(part).__qualname__, (), (), "is not of qspec, so that its state cannot be merged")
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


def _require_alike(descriptions: Sequence[Sequence[_Entry]]) -> None:
    """All processes see the same descriptions, so that all raise or none does.

    Raises: CalibrationError.
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
                _reject(rank, _line(theirs), f"{_line(mine)}, as on rank 0")
    for entries in zip(*descriptions, strict=True):
        known = next((entry for entry in entries if math.prod(entry.shape)), entries[0])
        for rank, entry in enumerate(entries):
            if entry.shape not in ((0,), known.shape):
                _reject(rank, f"ranges of shape {entry.shape} at {entry.name}", f"{known.shape}, as on another rank")


def _line(entry: _Entry) -> str:
    return f"{entry.name}: {entry.kind.rpartition('.')[2]}({', '.join(entry.settings)})"


def _reject(rank: int, found: str, expected: str) -> None:
    raise CalibrationError(
        "the processes have different observers",
        found=f"{found}, on rank {rank}",
        expected=expected,
        remedy="prepare the same model with the same quantizer on every process",
    )


def _widen(observer: _Ranged, shape: tuple[int, ...]) -> None:
    """Give an observer that saw nothing as many ranges as the others have, all empty."""
    if observer.min_val.shape != shape:
        observer.min_val.resize_(shape).fill_(math.inf)
        observer.max_val.resize_(shape).fill_(-math.inf)


def _device(group: "distributed.ProcessGroup | None") -> torch.device:
    """Where the group's backend reduces tensors."""
    accelerator = torch.accelerator.current_accelerator()
    is_on_cpu = any(name in str(distributed.get_backend(group)) for name in ("gloo", "mpi"))
    return torch.device("cpu") if is_on_cpu or accelerator is None else accelerator


def _reduce(
    tensors: Sequence[Tensor], operation: "distributed.ReduceOp.RedOpType", group: "distributed.ProcessGroup | None"
) -> None:
    """Reduce tensors of one dtype in place, all in one exchange."""
    if not tensors:
        return
    joined = torch.cat([tensor.reshape(-1) for tensor in tensors]).to(_device(group))
    distributed.all_reduce(joined, operation, group=group)
    parts = torch.split(joined, [tensor.numel() for tensor in tensors])
    for tensor, part in zip(tensors, parts, strict=True):
        tensor.copy_(part.reshape(tensor.shape))


def _wide(observers: Sequence[_Ranged], value: Callable[[_Ranged], Tensor]) -> list[Tensor]:
    """One tensor of each observer on the CPU, in float64, which holds what every buffer may."""
    return [value(observer).to("cpu", torch.float64, copy=True) for observer in observers]


def _least(observer: _Ranged) -> Tensor:
    return observer.min_val


def _most(observer: _Ranged) -> Tensor:
    return observer.max_val


def _merge(observers: Sequence[_Ranged], group: "distributed.ProcessGroup | None") -> None:
    """Least minimum, greatest maximum, and the sum of the histograms over the bins that the union asks for."""
    least, most = _wide(observers, _least), _wide(observers, _most)
    _reduce([*least, *(tensor.neg_() for tensor in most)], distributed.ReduceOp.MIN, group)
    counts: list[Tensor] = []
    for observer, low, high in zip(observers, least, most, strict=True):
        high.neg_()
        if isinstance(observer, HistogramObserver):
            counts += observer.widened(low.item(), high.item())
        observer.min_val.copy_(low)
        observer.max_val.copy_(high)
    summed = [tensor.cpu() for tensor in counts]
    _reduce(summed, distributed.ReduceOp.SUM, group)
    for tensor, total in zip(counts, summed, strict=True):
        tensor.copy_(total)


def _average(observers: Sequence[_Ranged], group: "distributed.ProcessGroup | None") -> None:
    """Mean of the processes that saw data. Which those are is told channel by channel: an empty range is one too."""
    least, most = _wide(observers, _least), _wide(observers, _most)
    seen = [(low <= high).to(torch.float64) for low, high in zip(least, most, strict=True)]
    for limits in (least, most):
        for limit, has_data in zip(limits, seen, strict=True):
            limit[has_data == 0] = 0.0
    _reduce([*least, *most, *seen], distributed.ReduceOp.SUM, group)
    for observer, low, high, number in zip(observers, least, most, seen, strict=True):
        observer.min_val.copy_(torch.where(number > 0, low / number, math.inf))
        observer.max_val.copy_(torch.where(number > 0, high / number, -math.inf))
