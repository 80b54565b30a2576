"""Compare a quantized program with its float model in one call."""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch.fx import GraphModule

from qspec_core._coverage import operators
from qspec_core._errors import CalibrationError
from qspec_core.canonical import STANDS_FOR_KEY, debug_handle
from qspec_core.debug._loggers import logged_copy
from qspec_core.debug._results import Sums, nothing_shared
from qspec_core.graph import graph_modules

__all__ = ["Comparison", "NodeComparison", "compare"]


@dataclass(frozen=True)
class NodeComparison:
    """One operator's output in the float model and in the quantized program, over all batches.

    Args:
        node: name of the node in the quantized program; in a body of control flow, `submod_1.linear`.
        float_node: name of the float model's node that computes the same value.
        operator: the operator called.
        module: path of the module it was traced in.
        sqnr: signal to quantization noise ratio in dB; infinite if both outputs are bitwise equal.
        max_error: largest absolute difference.
        cosine: cosine similarity of the two outputs; 1.0 if both are zero.
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
    """Results for every operator that both programs have, in the order of the quantized program."""

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
        """Write a bar chart of the SQNR of each operator, in graph order. Needs `pip install qspec-core[plot]`."""
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


def compare(
    float_model: GraphModule, quantized: GraphModule, batches: Iterable[tuple[Any, ...]]
) -> Comparison:  # a model's arguments may be of any type
    """Run a float model and the program quantized from it on the same batches, and compare every operator's output.

    Operators are paired by debug handle if both programs have handles, else by name. A folded batch norm is compared
    with the output of the layer that it was folded into.

    Args:
        float_model: the exported model that was prepared.
        quantized: the result of `prepare_pt2e` or `convert_pt2e`.
        batches: positional arguments of each call.
    Raises:
        GraphError: the two have no operator in common.
        CalibrationError: there is no batch.
    Cost: one run of each model per batch; memory for the outputs of one batch.
    """
    pairs = _pairs(float_model, quantized)
    reference, references = logged_copy(float_model, pairs.values())
    actual, actuals = logged_copy(quantized, pairs)
    sums = {name: Sums() for name in pairs}
    count = 0
    with torch.no_grad():
        for batch in batches:
            reference(*batch)
            actual(*batch)
            for name, total in sums.items():
                total.add(references[pairs[name]].stats, actuals[name].stats)
            for logger in (*references.values(), *actuals.values()):
                logger.stats.clear()
            count += 1
    if count == 0:
        raise CalibrationError(
            "there is nothing to compare: got 0 batches",
            found="an iterable without batches",
            expected="one batch of inputs or more",
            remedy="pass batches=[(x,), ...]",
        )
    return Comparison(
        tuple(
            NodeComparison(
                name, pairs[name], actuals[name].operator, actuals[name].module, total.sqnr, total.worst, total.cosine
            )
            for name, total in sums.items()
            if total.compared
        )
    )


def _pairs(float_model: GraphModule, quantized: GraphModule) -> dict[str, str]:
    """For each operator of the quantized program, the float operator that computes the same value."""
    marks, floats = _handles(quantized), _handles(float_model)
    by_handle = {handle: name for name, handle in floats.items()}
    pairs = {name: by_handle[handle] for name, handle in marks.items() if handle in by_handle}
    if not pairs:
        latest = _last_float_operators(float_model, quantized)
        pairs = {name: latest[name] for name in operators(quantized) if name in latest}
    if not pairs:
        raise nothing_shared(len(operators(float_model)), len(operators(quantized)))
    return pairs


def _handles(module: GraphModule) -> dict[str, int]:
    """Debug handle of each operator that computes a floating-point tensor, by name."""
    known = operators(module)
    nodes = ((f"{prefix}{node.name}", node) for prefix, body in graph_modules(module) for node in body.graph.nodes)
    marked = ((name, debug_handle(node)) for name, node in nodes if name in known)
    return {name: handle for name, handle in marked if handle is not None}


def _last_float_operators(float_model: GraphModule, quantized: GraphModule) -> dict[str, str]:
    """For each operator name in the quantized program, the last float operator whose value it computes."""
    stands_for = {
        f"{prefix}{old}": f"{prefix}{new}"
        for prefix, body in graph_modules(quantized)
        for old, new in body.meta.get(STANDS_FOR_KEY, {}).items()
    }
    latest: dict[str, str] = {}
    for name in operators(float_model):
        current, seen = name, {name}
        while current in stands_for and stands_for[current] not in seen:
            current = stands_for[current]
            seen.add(current)
        latest[current] = name
    return latest
