"""Numeric debugging: where a quantized program departs from its float model, operator by operator."""

import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.fx import GraphModule, Interpreter, Node

from qspec_core.canonical import STANDS_FOR_KEY
from qspec_core.coverage import operators
from qspec_core.errors import CalibrationError, GraphError

__all__ = ["Comparison", "NodeComparison", "compare"]


@dataclass(frozen=True)
class NodeComparison:
    """One operator's output in the float model and in the quantized program, over all batches.

    Args:
        node: name of the node in the quantized program.
        float_node: name of the node in the float model whose value it stands for.
        operator: the operator called.
        module: path of the module it was traced in.
        sqnr: signal to quantization noise ratio in dB; infinite where both agree bit for bit.
        max_error: largest absolute difference.
        cosine: cosine similarity of the two outputs; 1.0 where both are zero.
    """

    node: str
    float_node: str
    operator: str
    module: str
    sqnr: float
    max_error: float
    cosine: float


@dataclass(frozen=True)
class Comparison:
    """Every operator that both programs compute, in the order of the quantized one."""

    nodes: tuple[NodeComparison, ...]

    def worst(self, count: int = 10) -> tuple[NodeComparison, ...]:
        """The operators with the lowest SQNR, the lowest first."""
        return tuple(sorted(self.nodes, key=_sqnr)[:count])

    def table(self, count: int | None = None) -> str:
        """Text table, the worst operators first."""
        rows = [("node", "operator", "module", "SQNR dB", "max error", "cosine")]
        for entry in self.worst(len(self.nodes) if count is None else count):
            numbers = f"{entry.sqnr:.1f}", f"{entry.max_error:.3g}", f"{entry.cosine:.5f}"
            rows.append((entry.node, entry.operator, entry.module, *numbers))
        widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
        return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) for row in rows)

    def plot(self, path: str | Path) -> Path:
        """Draw SQNR over the operators in graph order and write the picture; needs `pip install qspec-core[plot]`."""
        from matplotlib.figure import Figure

        figure = Figure(figsize=(max(6.0, 0.12 * len(self.nodes)), 4.0), layout="constrained")
        axes = figure.add_subplot()
        finite = [entry for entry in self.nodes if math.isfinite(entry.sqnr)]
        axes.bar([entry.node for entry in finite], [entry.sqnr for entry in finite])
        axes.set_ylabel("SQNR (dB)")
        axes.tick_params(axis="x", labelrotation=90, labelsize=6)
        figure.savefig(Path(path))
        return Path(path)

    def __str__(self) -> str:
        return self.table(10)


def _sqnr(entry: NodeComparison) -> float:
    return entry.sqnr


class _Sums:
    """Running sums over batches, in float64."""

    def __init__(self) -> None:
        self.signal = self.noise = self.other = self.dot = self.worst = 0.0
        self.compared = False

    def add(self, reference: Tensor, actual: Tensor) -> None:
        reference, actual = reference.detach().double().flatten(), actual.detach().double().flatten()
        difference = reference - actual
        self.compared = True
        self.signal += float(reference.dot(reference))
        self.other += float(actual.dot(actual))
        self.dot += float(reference.dot(actual))
        self.noise += float(difference.dot(difference))
        self.worst = max(self.worst, float(difference.abs().max()) if difference.numel() else 0.0)

    @property
    def sqnr(self) -> float:
        if self.noise == 0.0:
            return math.inf
        return 10.0 * math.log10(self.signal / self.noise) if self.signal else -math.inf

    @property
    def cosine(self) -> float:
        if self.signal == 0.0 or self.other == 0.0:
            return 1.0 if self.signal == self.other else 0.0
        return self.dot / math.sqrt(self.signal * self.other)


class _Recorder(Interpreter):
    """Runs a graph and hands the values of some of its nodes to a function."""

    def __init__(self, module: GraphModule, names: Iterable[str], record: Callable[[str, Tensor], None]) -> None:
        super().__init__(module)
        self._names = frozenset(names)
        self._record = record

    def run_node(self, n: Node) -> Any:  # what a node computes can be anything
        value = super().run_node(n)
        if n.name in self._names and isinstance(value, Tensor):
            self._record(n.name, value)
        return value


def compare(
    float_model: GraphModule, quantized: GraphModule, batches: Iterable[tuple[Any, ...]]
) -> Comparison:  # a model's arguments may be of any type
    """Run a float model and the program quantized from it on the same batches, and compare every operator's output.

    A batch norm that was folded is compared with the output of the layer it was folded into.

    Args:
        float_model: the exported model that was prepared.
        quantized: what `convert_pt2e` made of it.
        batches: positional arguments of each call.
    Raises:
        GraphError: the two have no operator in common.
        CalibrationError: no batch came.
    Cost: one run of each model per batch; the float outputs of one batch are held at a time.
    """
    pairs = _pairs(float_model, quantized)
    sums = {name: _Sums() for name in pairs}
    held: dict[str, Tensor] = {}
    wanted = frozenset(pairs.values())

    def keep(name: str, value: Tensor) -> None:
        held[name] = value

    def measure(name: str, value: Tensor) -> None:
        reference = held.get(pairs[name])
        if reference is not None and reference.shape == value.shape:
            sums[name].add(reference, value)

    count = 0
    with torch.no_grad():
        for batch in batches:
            _Recorder(float_model, wanted, keep).run(*batch)
            _Recorder(quantized, pairs, measure).run(*batch)
            held.clear()
            count += 1
    if count == 0:
        raise CalibrationError(
            "there is nothing to compare: no batch came",
            found="an iterable without batches",
            expected="one batch of inputs or more",
            remedy="pass batches=[(x,), ...]",
        )
    known = operators(quantized)
    return Comparison(
        tuple(
            NodeComparison(name, pairs[name], *known[name], total.sqnr, total.worst, total.cosine)
            for name, total in sums.items()
            if total.compared
        )
    )


def _pairs(float_model: GraphModule, quantized: GraphModule) -> Mapping[str, str]:
    """For each operator of the quantized program, the last float operator whose value it stands for."""
    stands_for: dict[str, str] = quantized.meta.get(STANDS_FOR_KEY, {})
    latest: dict[str, str] = {}
    for name in operators(float_model):
        current, seen = name, {name}
        while current in stands_for and stands_for[current] not in seen:
            current = stands_for[current]
            seen.add(current)
        latest[current] = name
    pairs = {name: latest[name] for name in operators(quantized) if name in latest}
    if not pairs:
        raise GraphError(
            "the two programs have no operator in common",
            found=f"operators: {len(operators(float_model))} and {len(operators(quantized))}, none of one name",
            expected="a program that was quantized from this float model",
            remedy="pass the exported model that prepare_pt2e was given, and what convert_pt2e returned",
        )
    return pairs
