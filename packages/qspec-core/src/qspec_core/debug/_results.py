"""Compare two logs value by value."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from qspec_core._errors import GraphError
from qspec_core.debug._loggers import DebugKey, Logged

__all__ = [
    "NodeAccuracySummary",
    "QuantizationComparisonResult",
    "Sums",
    "compare_results",
    "nothing_shared",
    "tensors",
]


def tensors(value: object) -> Iterator[Tensor]:
    """The tensors in nested lists, tuples and dictionaries, in order."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for item in value.values():
            yield from tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from tensors(item)


@dataclass
class Sums:
    """Sums over batches, in float64, from which the error measures are computed."""

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    dot: float = 0.0
    worst: float = 0.0
    compared: bool = False

    def add(self, references: Sequence[object], actuals: Sequence[object]) -> None:
        """Add the records of two loggers. Does nothing if the numbers of calls or the shapes differ."""
        expected, found = list(tensors(references)), list(tensors(actuals))
        if len(references) != len(actuals) or [t.shape for t in expected] != [t.shape for t in found]:
            return
        for reference, actual in zip(expected, found, strict=True):
            self._add(reference.double().flatten(), actual.double().flatten())

    def _add(self, reference: Tensor, actual: Tensor) -> None:
        difference = reference - actual
        self.compared = True
        self.signal += float(reference.dot(reference))
        self.other += float(actual.dot(actual))
        self.dot += float(reference.dot(actual))
        self.noise += float(difference.dot(difference))
        self.worst = max(self.worst, float(difference.abs().max()) if difference.numel() else 0.0)

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise, in dB."""
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    @property
    def cosine(self) -> float:
        """Cosine similarity."""
        if self.signal == 0.0 or self.other == 0.0:
            return 1.0 if self.signal == self.other else 0.0
        return self.dot / math.sqrt(self.signal * self.other)


@dataclass(frozen=True, repr=False)
class QuantizationComparisonResult:
    """Outputs of one operator in one call of both programs: a tensor, or tensors in lists, tuples or dictionaries.

    Args:
        actual: output in the quantized program.
        ref: output in the float model.
    Raises: GraphError: the shapes differ, or there is no tensor.
    """

    actual: Any  # a tensor, or tensors in lists, tuples or dictionaries
    ref: Any  # as above

    def __post_init__(self) -> None:
        shapes = [[tuple(tensor.shape) for tensor in tensors(value)] for value in (self.actual, self.ref)]
        if shapes[0] != shapes[1] or not shapes[0]:
            raise GraphError(
                f"two outputs with {len(shapes[0])} and {len(shapes[1])} tensors cannot be compared",
                found=f"{shapes[0]} in the quantized program, {shapes[1]} in the float model",
                expected="tensors of the same shapes",
                remedy="compare outputs of the same operator in two programs that were called with the same inputs",
            )

    def loss(self, loss_function: Callable[[Tensor, Tensor], Any]) -> Any:  # of the structure of `actual`
        """`loss_function(actual, ref)` in float32, for each tensor if there are several."""
        return _loss(loss_function, self.actual, self.ref)

    @property
    def mse_loss(self) -> Any:  # as above
        """Mean squared difference."""
        return self.loss(functional.mse_loss)

    @property
    def sqnr(self) -> Any:  # as above
        """Signal to quantization noise, in dB."""
        return self.loss(_sqnr)

    def __repr__(self) -> str:
        return f"{type(self).__name__}(mse_loss={self.mse_loss}, sqnr={self.sqnr})"


def _sqnr(actual: Tensor, reference: Tensor) -> Tensor:
    return 20.0 * torch.log10(torch.linalg.vector_norm(reference) / torch.linalg.vector_norm(reference - actual))


def _loss(
    function: Callable[[Tensor, Tensor], Tensor], actual: Any, reference: Any
) -> Any:  # of the structure of `actual`
    if isinstance(actual, Tensor):
        return function(actual.float(), reference.float())
    if isinstance(actual, Mapping):
        return {key: _loss(function, value, reference[key]) for key, value in actual.items()}
    if isinstance(actual, list | tuple):
        return type(actual)([_loss(function, *pair) for pair in zip(actual, reference, strict=True)])
    return None


@dataclass(frozen=True)
class NodeAccuracySummary:
    """Comparison of one operator in both programs: each call in `results`, and measures over all calls.

    Args:
        debug_info: key of the operator in both logs.
        actual_node_name: name of the node in the quantized program.
        actual_module_stack: path of the module it was traced in.
        ref_node_name: name of the node in the float model.
        ref_module_stack: path of the module it was traced in.
        results: one result for each call.
    """

    debug_info: DebugKey
    actual_node_name: str
    actual_module_stack: str
    ref_node_name: str
    ref_module_stack: str
    results: Sequence[QuantizationComparisonResult]

    def _sums(self) -> Sums:
        sums = Sums()
        for result in self.results:
            sums.add([result.ref], [result.actual])
        return sums

    @property
    def sqnr(self) -> float:
        """Signal to quantization noise over all calls, in dB; infinite if both are bitwise equal."""
        return self._sums().sqnr

    @property
    def max_error(self) -> float:
        """Largest absolute difference in any call."""
        return self._sums().worst

    @property
    def cosine(self) -> float:
        """Cosine similarity over all calls."""
        return self._sums().cosine


def compare_results(
    ref_results: Mapping[DebugKey, Logged], actual_results: Mapping[DebugKey, Logged]
) -> dict[DebugKey, NodeAccuracySummary]:
    """Compare two logs. Operators whose numbers of calls or shapes differ are left out.

    Args:
        ref_results: log of the float model, from `extract_results_from_loggers`.
        actual_results: log of the quantized program.
    Raises: GraphError: the logs have no operator in common.
    """
    shared = [key for key in actual_results if key in ref_results]
    if not shared:
        raise nothing_shared(len(ref_results), len(actual_results))
    found: dict[DebugKey, NodeAccuracySummary] = {}
    for key in shared:
        reference, actual, sums = ref_results[key], actual_results[key], Sums()
        sums.add(reference.stats, actual.stats)
        if sums.compared:
            pairs = zip(actual.stats, reference.stats, strict=True)
            results = [QuantizationComparisonResult(mine, theirs) for mine, theirs in pairs]
            places = actual.node_name, actual.module, reference.node_name, reference.module
            found[key] = NodeAccuracySummary(key, *places, results)
    return found


def nothing_shared(reference: int, actual: int) -> GraphError:
    """The error for two programs that have no operator in common."""
    return GraphError(
        "the two programs have no operator in common",
        found=f"{reference} operators in the float model, {actual} in the quantized program, 0 in common",
        expected="a program that was quantized from this float model",
        remedy="pass the exported model that was given to prepare_pt2e, and the result of convert_pt2e",
    )
