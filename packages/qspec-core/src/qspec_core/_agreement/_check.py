"""The check of a lowered program: it runs once on each call, and its results are compared."""

import copy
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import nn
from torch.fx import GraphModule

from qspec_core._agreement._calls import Call, copied_inputs
from qspec_core._agreement._compare import Deviation, deviations
from qspec_core._errors import QSpecError
from qspec_core._torch import tree_leaves
from qspec_core.graph._mutation import mutated_attributes

__all__ = ["LoweringCheck", "check_lowered"]


@dataclass(frozen=True)
class LoweringCheck:
    """Result of comparing a lowered program with its converted graph.

    Args:
        deviations: one for each tensor that each call returned.
        refused: calls that the lowered program refused, each with its message: other sizes, where it has fixed ones.
        left_in_float: operators whose kernels diverged, and which therefore run in float; by name, with the figures.
    """

    deviations: tuple[Deviation, ...]
    refused: tuple[str, ...] = ()
    left_in_float: tuple[tuple[str, str], ...] = ()

    @property
    def worst(self) -> Deviation | None:
        """The deviation that is largest beside its bound; None where nothing was compared."""
        return max(self.deviations, key=_ratio, default=None)

    @property
    def holds(self) -> bool:
        """Whether every result is within its bound."""
        return all(deviation.ratio <= 1 for deviation in self.deviations)

    def __str__(self) -> str:
        lines = [f"{len(self.deviations)} results compared with the converted graph"]
        lines += [str(self.worst)] if self.worst is not None else []
        lines += [f"refused {call}" for call in self.refused]
        lines += [f"{name} runs in float: {why}" for name, why in self.left_in_float]
        return "; ".join(lines)


def _ratio(deviation: Deviation) -> float:
    return deviation.ratio


@contextmanager
def _state_kept(lowered: nn.Module, keeps_state: bool) -> Iterator[nn.Module]:
    """A module to run, whose calls leave no trace in the program."""
    if not keeps_state:
        yield lowered
    elif not isinstance(lowered, GraphModule):
        yield copy.deepcopy(lowered)
    else:
        buffers = [lowered.get_buffer(name) for name in sorted(mutated_attributes(lowered))]
        before = [buffer.clone() for buffer in buffers]
        try:
            yield lowered
        finally:
            for buffer, value in zip(buffers, before, strict=True):
                buffer.copy_(value)


def check_lowered(lowered: nn.Module, calls: Sequence[Call], *, keeps_state: bool) -> LoweringCheck:
    """Run a lowered program on each call and compare.

    Args:
        lowered: from a backend's `lower`.
        calls: from `calls_of`.
        keeps_state: the graph mutates buffers. The program's state is put back: the buffers that a lowered graph writes
            to; of any other program a deep copy runs in its place.
    Raises: whatever the program raises on the example inputs.
    """
    found: list[Deviation] = []
    refused: list[str] = []
    with torch.no_grad(), _state_kept(lowered, keeps_state) as running:
        for index, call in enumerate(calls):
            try:
                results = running(*copied_inputs(call.inputs))
            except QSpecError as error:
                if index == 0:
                    raise
                refused.append(f"{call.label}: {error.problem}")
                continue
            found += deviations(call, tree_leaves(results))
    return LoweringCheck(tuple(found), tuple(refused))
