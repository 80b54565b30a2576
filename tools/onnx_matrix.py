"""Every row of every installed backend as an ONNX file: opsets by reference evaluator and ONNX Runtime.

    python tools/onnx_matrix.py                     prints the table; exit code 1 if a row fails
    python tools/onnx_matrix.py --update            also writes docs/onnx-matrix.md
    python tools/onnx_matrix.py --opset 21 --backend x86 --every 5

Rows are written a few dozen to a file: torch's exporter needs a second for each file, whatever its size. A file that
fails is written again row by row.
"""

import argparse
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import Backend, QSpecError, backends, get_backend
from qspec_core.onnx import OnnxStatus, check_onnx, to_onnx
from qspec_core.testing import ConvertedRow, converted_rows

__all__ = ["OPSETS", "Result", "main", "matrix", "page"]

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "onnx-matrix.md"
OPSETS = (18, 21, 23, 25)
_TOGETHER = 24
"""Rows in one file."""


@dataclass
class Result:
    """One row of a backend.

    Args:
        name: name of the row's case.
        outcomes: by opset, what is wrong; an empty text if nothing is.
        declared: why ONNX cannot express it; empty if it can.
    """

    name: str
    outcomes: dict[int, str] = field(default_factory=dict)
    declared: str = ""

    @property
    def holds(self) -> bool:
        """Whether every file of the row holds."""
        return not any(self.outcomes.values())


class _Together(nn.Module):
    """Several converted graphs beside each other. Inputs and results are those of all of them, in order."""

    def __init__(self, rows: Sequence[ConvertedRow]) -> None:
        super().__init__()
        self.counts = [len(row.inputs) for row in rows]
        for index, row in enumerate(rows):
            self.add_module(f"row_{index}", row.converted)

    def forward(self, *inputs: Tensor) -> list[Any]:  # results of any structure
        rest = iter(inputs)
        return [row(*(next(rest) for _ in range(n))) for row, n in zip(self.children(), self.counts, strict=True)]


def matrix(backend: Backend, opsets: Sequence[int], *, every: int = 1) -> tuple[list[Result], Counter[str]]:
    """Write and check the rows of a backend in each opset.

    Args:
        backend: the backend.
        opsets: the opsets.
        every: take one row of so many.
    Returns: a result for each row, in the table's order; and the kernels that ONNX Runtime runs the layers with in the
        last opset, with their numbers.
    """
    rows = list(converted_rows(backend))[::every]
    results = {row.name: Result(row.name, declared=row.row.not_in_onnx) for row in rows}
    tested = [row for row in rows if not row.row.not_in_onnx]
    kernels: Counter[str] = Counter()
    for opset in opsets:
        kernels.clear()
        for first in range(0, len(tested), _TOGETHER):
            for row, problem in _checked(tested[first : first + _TOGETHER], opset, kernels):
                results[row.name].outcomes[opset] = problem
    return list(results.values()), kernels


def _checked(rows: Sequence[ConvertedRow], opset: int, kernels: Counter[str]) -> Iterator[tuple[ConvertedRow, str]]:
    """Each row with the problem of its file, empty if there is none. One file of all rows is tried first."""
    if len(rows) > 1:
        inputs = tuple(value for row in rows for value in row.inputs)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            graph: nn.Module = torch.export.export(_Together(rows), inputs).module()
        if isinstance(graph, GraphModule) and not _problem(graph, inputs, opset, kernels):
            yield from ((row, "") for row in rows)
            return
    for row in rows:
        yield row, _problem(row.converted, row.inputs, opset, kernels)


def _problem(graph: GraphModule, inputs: tuple[Any, ...], opset: int, kernels: Counter[str]) -> str:
    """The problem of a graph's file, empty if there is none. Counts the kernels of a good file."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        try:
            to_onnx(graph, inputs, path, opset=opset)
            check = check_onnx(graph, path, inputs, node_by_node=True)
        except QSpecError as error:
            return f"{error.problem}: {error.found}"
    bad = [found for found in check.findings if found.status in (OnnxStatus.DIFFERS, OnnxStatus.NOT_RUN)]
    if not bad:
        kernels.update(layer.kernel or f"float: {layer.reason}" for layer in check.layers)
    return "; ".join(map(str, bad))


def page(found: dict[str, tuple[list[Result], Counter[str]]], opsets: Sequence[int], every: int = 1) -> str:
    """The page of the matrix."""
    lines = [
        "# Rows in ONNX",
        "",
        "Every chain and mode of every row of the backends here, written with `qspec_core.onnx.to_onnx`, checked with",
        "`qspec_core.onnx.check_onnx`: ONNX's reference evaluator, operator by operator; ONNX Runtime as written, and",
        "optimized. `nox -s onnx -- --update` writes this page. A number is how many cases of the row hold.",
        "",
        "ONNX Runtime has integer kernels only where the result of a layer is quantized too; others run in float.",
        "",
    ]
    if every > 1:
        lines += [f"One case of {every}, in the order of the tables, was written.", ""]
    for name, (results, kernels) in found.items():
        lines += [f"## {name}", "", *_table(results, opsets), "", *_declared(results)]
        lines += ["| layers in ONNX Runtime | number |", "|---|--:|"]
        lines += [f"| {kernel} | {number} |" for kernel, number in kernels.most_common()]
        lines += [""]
    return "\n".join(lines).rstrip() + "\n"


def _table(results: Sequence[Result], opsets: Sequence[int]) -> Iterator[str]:
    yield f"| row | cases | {' | '.join(f'opset {opset}' for opset in opsets)} |"
    yield f"|---|--:|{'--:|' * len(opsets)}"
    families: dict[str, list[Result]] = {}
    for result in results:
        families.setdefault(result.name.split(",")[0].split(" + ")[0], []).append(result)
    for name, members in families.items():
        cells = [str(sum(not member.outcomes.get(opset, "-") for member in members)) for opset in opsets]
        yield f"| {name} | {len(members)} | {' | '.join(cells)} |"
    tested = [result for result in results if not result.declared]
    cells = [str(sum(not result.outcomes.get(opset, "-") for result in tested)) for opset in opsets]
    yield f"| all | {len(results)} | {' | '.join(cells)} |"


def _declared(results: Sequence[Result]) -> Iterator[str]:
    reasons = {result.name.split(",")[0]: result.declared for result in results if result.declared}
    if reasons:
        yield from ("Not in ONNX:", "")
        yield from (f"- {name}: {reason}" for name, reason in reasons.items())
        yield ""


def main(arguments: Sequence[str]) -> int:
    """Run the command; returns its exit code."""
    parser = argparse.ArgumentParser(description="Rows of the installed backends as ONNX files.")
    parser.add_argument("--update", action="store_true", help=f"write {PAGE.name}")
    parser.add_argument("--backend", action="append", help="only this backend")
    parser.add_argument("--opset", action="append", type=int, help="only this opset")
    parser.add_argument("--every", type=int, default=1, help="one row of so many")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    opsets = tuple(options.opset or OPSETS)
    names = options.backend or [entry.name for entry in backends() if not entry.problem]
    found: dict[str, tuple[list[Result], Counter[str]]] = {}
    for name in names:
        backend = get_backend(name)
        if backend.table.rows:
            found[name] = matrix(backend, opsets, every=options.every)
    text = page(found, opsets, options.every)
    print(text)
    wrong = [(name, result) for name, (results, _) in found.items() for result in results if not result.holds]
    for name, result in wrong:
        print(f"{name}, {result.name}: { {opset: text for opset, text in result.outcomes.items() if text} }")
    if options.update:
        PAGE.write_text(text, encoding="utf-8")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
