"""Numeric debugging: where a quantized program departs from its float model, operator by operator.

`compare` does it in one call. Who wants the values themselves marks the operators with `generate_numeric_debug_handle`
before prepare, lets `prepare_for_propagation_comparison` log them in both programs, and reads the logs.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core.canonical import NUMERIC_DEBUG_HANDLE_KEY, STANDS_FOR_KEY, debug_handle, set_debug_handle
from qspec_core.coverage import operators
from qspec_core.errors import CalibrationError, GraphError, module_path
from qspec_core.graphs import copy_graph_module, fresh_attribute_name, require_exported
from qspec_core.subgraphs import graph_modules

__all__ = [
    "NUMERIC_DEBUG_HANDLE_KEY",
    "Comparison",
    "Logged",
    "NodeComparison",
    "OutputLogger",
    "compare",
    "compare_results",
    "extract_results_from_loggers",
    "generate_numeric_debug_handle",
    "prepare_for_propagation_comparison",
]


@dataclass(frozen=True)
class NodeComparison:
    """One operator's output in the float model and in the quantized program, over all batches.

    Args:
        node: name of the node in the quantized program; in a body of control flow, `submod_1.linear`.
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


@dataclass
class _Sums:
    """Running sums over batches, in float64."""

    signal: float = 0.0
    noise: float = 0.0
    other: float = 0.0
    dot: float = 0.0
    worst: float = 0.0
    compared: bool = False

    def add(self, references: Sequence[Tensor], actuals: Sequence[Tensor]) -> None:
        """Take in what two loggers saw; other numbers of calls or other shapes have nothing to compare."""
        if [tensor.shape for tensor in references] != [tensor.shape for tensor in actuals]:
            return
        for reference, actual in zip(references, actuals, strict=True):
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


class OutputLogger(nn.Module):
    """Keeps every tensor that passes.

    Args:
        node: name of the node whose output it keeps.
        operator: the operator called there.
        module: path of the module it was traced in.
        handle: the node's debug handle, if it has one.
    """

    def __init__(self, node: str, operator: str, module: str, handle: int | None = None) -> None:
        super().__init__()
        self.node, self.operator, self.module, self.handle = node, operator, module, handle
        self.values: list[Tensor] = []

    def forward(self, x: object) -> object:
        """Keep a copy: what reads the tensor may write to it."""
        if isinstance(x, Tensor):
            self.values.append(x.detach().clone())
        return x


def generate_numeric_debug_handle(model: "torch.export.ExportedProgram | GraphModule") -> None:
    """Number every operator of an exported model, bodies of control flow included. Only metadata is written, in place.

    The numbers survive prepare and convert. What is folded hands its number on: a layer that a batch norm was folded
    into has the batch norm's, since it now computes its value.

    Args:
        model: the exported program, or its graph module.
    """
    module = model.graph_module if isinstance(model, torch.export.ExportedProgram) else model
    require_exported(module, "generate_numeric_debug_handle")
    calls = (node for _, body in graph_modules(module) for node in body.graph.nodes if node.op == "call_function")
    for handle, node in enumerate(calls, start=1):
        set_debug_handle(node, handle)


def prepare_for_propagation_comparison(model: GraphModule) -> GraphModule:
    """Copy a marked model and log the output of every operator that has a debug handle.

    Args:
        model: the float model after `generate_numeric_debug_handle`, or a prepared or converted one made from it.
    Returns: a copy that shares parameters; run it, then `extract_results_from_loggers`.
    Raises: GraphError: no operator has a handle.
    """
    names = [
        f"{prefix}{node.name}"
        for prefix, body in graph_modules(require_exported(model, "prepare_for_propagation_comparison"))
        for node in body.graph.nodes
        if debug_handle(node) is not None
    ]
    if not names:
        raise GraphError(
            "no operator of the model has a debug handle",
            found="a graph without marks",
            expected=f"node.meta['custom'][{NUMERIC_DEBUG_HANDLE_KEY!r}]",
            remedy="call generate_numeric_debug_handle on the exported model before prepare",
        )
    return _logged(model, names)[0]


class Logged(NamedTuple):
    """What a logger kept.

    Args:
        node: name of the node.
        module: path of the module it was traced in.
        values: its output at each call.
    """

    node: str
    module: str
    values: list[Tensor]


def extract_results_from_loggers(model: GraphModule) -> dict[int, Logged]:
    """What every logger of a model kept, by debug handle; operators that never ran are left out."""
    loggers = [part for part in model.modules() if isinstance(part, OutputLogger)]
    return {
        logger.handle: Logged(logger.node, logger.module, logger.values)
        for logger in loggers
        if logger.handle is not None and logger.values
    }


def compare_results(reference: Mapping[int, Logged], actual: Mapping[int, Logged]) -> dict[int, NodeComparison]:
    """Compare two logs, by debug handle.

    Raises: GraphError: they have no handle in common.
    """
    shared = [handle for handle in actual if handle in reference]
    if not shared:
        raise _nothing_shared(len(reference), len(actual))
    found: dict[int, NodeComparison] = {}
    for handle in shared:
        sums, mine, theirs = _Sums(), reference[handle], actual[handle]
        sums.add(mine.values, theirs.values)
        if sums.compared:
            numbers = sums.sqnr, sums.worst, sums.cosine
            found[handle] = NodeComparison(theirs.node, mine.node, "", theirs.module, *numbers)
    return found


def compare(
    float_model: GraphModule, quantized: GraphModule, batches: Iterable[tuple[Any, ...]]
) -> Comparison:  # a model's arguments may be of any type
    """Run a float model and the program quantized from it on the same batches, and compare every operator's output.

    Operators are paired by debug handle where both programs have them, else by name. A batch norm that was folded is
    compared with the output of the layer it was folded into.

    Args:
        float_model: the exported model that was prepared.
        quantized: what `prepare_pt2e` or `convert_pt2e` made of it.
        batches: positional arguments of each call.
    Raises:
        GraphError: the two have no operator in common.
        CalibrationError: no batch came.
    Cost: one run of each model per batch; the outputs of one batch are held at a time.
    """
    pairs = _pairs(float_model, quantized)
    reference, references = _logged(float_model, pairs.values())
    actual, actuals = _logged(quantized, pairs)
    sums = {name: _Sums() for name in pairs}
    count = 0
    with torch.no_grad():
        for batch in batches:
            reference(*batch)
            actual(*batch)
            for name, total in sums.items():
                total.add(references[pairs[name]].values, actuals[name].values)
            for logger in (*references.values(), *actuals.values()):
                logger.values.clear()
            count += 1
    if count == 0:
        raise CalibrationError(
            "there is nothing to compare: no batch came",
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


def _logged(module: GraphModule, names: Iterable[str]) -> tuple[GraphModule, dict[str, OutputLogger]]:
    """A copy of a module with a logger behind each node of these names, and the loggers."""
    wanted = frozenset(names)
    copied = copy_graph_module(module)
    loggers: dict[str, OutputLogger] = {}
    for prefix, body in graph_modules(copied):
        for node in list(body.graph.nodes):
            name = f"{prefix}{node.name}"
            if name in wanted:
                loggers[name] = OutputLogger(name, str(node.target), module_path(node), debug_handle(node))
                _log(body, node, loggers[name])
        body.recompile()
    return copied, loggers


def _log(body: GraphModule, node: Node, logger: OutputLogger) -> None:
    target = fresh_attribute_name(body, "output_logger_")
    body.add_module(target, logger)
    with body.graph.inserting_after(node):
        body.graph.call_module(target, (node,))


def _pairs(float_model: GraphModule, quantized: GraphModule) -> dict[str, str]:
    """For each operator of the quantized program, the float operator whose value it stands for."""
    marks, floats = _handles(quantized), _handles(float_model)
    by_handle = {handle: name for name, handle in floats.items()}
    pairs = {name: by_handle[handle] for name, handle in marks.items() if handle in by_handle}
    if not pairs:
        latest = _latest(float_model, quantized)
        pairs = {name: latest[name] for name in operators(quantized) if name in latest}
    if not pairs:
        raise _nothing_shared(len(operators(float_model)), len(operators(quantized)))
    return pairs


def _handles(module: GraphModule) -> dict[str, int]:
    """Debug handle of each operator that computes a floating-point tensor, by name."""
    known = operators(module)
    nodes = ((f"{prefix}{node.name}", node) for prefix, body in graph_modules(module) for node in body.graph.nodes)
    marked = ((name, debug_handle(node)) for name, node in nodes if name in known)
    return {name: handle for name, handle in marked if handle is not None}


def _latest(float_model: GraphModule, quantized: GraphModule) -> dict[str, str]:
    """By the name of each operator that is left, the last float operator whose value it has now."""
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


def _nothing_shared(reference: int, actual: int) -> GraphError:
    return GraphError(
        "the two programs have no operator in common",
        found=f"{reference} and {actual} operators, of which none is the same",
        expected="a program that was quantized from this float model",
        remedy="pass the exported model that prepare_pt2e was given, and what convert_pt2e returned",
    )
