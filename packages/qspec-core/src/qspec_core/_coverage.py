"""Coverage: the report of every floating-point operator of a model, as plain data that prints and serializes."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch.fx import GraphModule, Node

from qspec_core import ops
from qspec_core._errors import GraphError, module_path
from qspec_core._spec import Q_ANNOTATION_KEY
from qspec_core.canonical import FOLDED_KEY
from qspec_core.graph import attribute, computes_float, graph_modules, is_call
from qspec_core.graph._layers import LAYERS
from qspec_core.patterns import Reason, ReasonCode

__all__ = [
    "COVERAGE_KEY",
    "Coverage",
    "CoverageEntry",
    "CoverageStatus",
    "coverage",
    "decide_quantized",
    "decide_skipped",
    "operators",
    "record_coverage",
]

COVERAGE_KEY = "qspec_coverage"
"""Key of a module's coverage in its `meta`, as plain data."""
_DECISION_KEY = "qspec_decision"

_LAYERS = frozenset(map(str, LAYERS))


class CoverageStatus(StrEnum):
    """The outcome for an operator."""

    QUANTIZED = "quantized"
    FOLDED = "folded"
    SKIPPED = "skipped"


@dataclass(frozen=True)
class CoverageEntry:
    """One floating-point operator.

    Args:
        node: name of its node.
        operator: the operator called.
        module: path of the module it was traced in; "" for the root.
        status: quantized, folded into another operator, or skipped.
        row: label of the row that quantized it, or how it was folded; "" if it was skipped.
        code: value of the `ReasonCode` if it was skipped, else "".
        detail: the reason's detail.
    """

    node: str
    operator: str
    module: str
    status: CoverageStatus
    row: str = ""
    code: str = ""
    detail: str = ""

    @property
    def is_layer(self) -> bool:
        """Whether it is a convolution or a linear layer."""
        return self.operator in _LAYERS

    @property
    def reason(self) -> str:
        """Why it was skipped, in one line; "" if it was not."""
        return f"{self.code}: {self.detail}" if self.detail and self.code else self.code

    def __str__(self) -> str:
        outcome = f"by row {self.row}" if self.status is CoverageStatus.QUANTIZED else self.row or self.reason
        place = f" in {self.module}" if self.module else ""
        return f"{self.node} ({self.operator}){place}: {self.status.value}, {outcome}"


@dataclass(frozen=True)
class Coverage:
    """Every floating-point operator of a model, in graph order; operators folded into others come last."""

    entries: tuple[CoverageEntry, ...]

    def __iter__(self) -> Iterator[CoverageEntry]:
        return iter(self.entries)

    def __len__(self) -> int:
        return len(self.entries)

    def with_status(self, status: CoverageStatus) -> tuple[CoverageEntry, ...]:
        """Entries of one status."""
        return tuple(entry for entry in self.entries if entry.status is status)

    @property
    def quantized(self) -> tuple[CoverageEntry, ...]:
        """Operators that some row quantized."""
        return self.with_status(CoverageStatus.QUANTIZED)

    @property
    def skipped(self) -> tuple[CoverageEntry, ...]:
        """Operators that stay in float."""
        return self.with_status(CoverageStatus.SKIPPED)

    @property
    def layers(self) -> tuple[CoverageEntry, ...]:
        """Convolutions and linear layers."""
        return tuple(entry for entry in self.entries if entry.is_layer)

    @property
    def quantized_layers(self) -> tuple[CoverageEntry, ...]:
        """Convolutions and linear layers that some row quantized."""
        return tuple(entry for entry in self.layers if entry.status is CoverageStatus.QUANTIZED)

    def summary(self) -> str:
        """One line of counts, then one line for each reason, the most frequent first, then one line for each way in
        which layers were folded.
        """
        lines = [
            f"{len(self.quantized_layers)} of {len(self.layers)} convolution and linear layers quantized; "
            f"{len(self.quantized)} operators quantized, {len(self.with_status(CoverageStatus.FOLDED))} folded, "
            f"{len(self.skipped)} skipped"
        ]
        reasons = Counter((entry.operator, entry.reason) for entry in self.skipped)
        gone = Counter((entry.operator, entry.row) for entry in self.layers if entry.status is CoverageStatus.FOLDED)
        told = (*reasons.most_common(), *gone.most_common())
        lines += [f"  {count} x {operator}: {reason}" for (operator, reason), count in told]
        return "\n".join(lines)

    def explain(self, name: str) -> str:
        """Describe a node's operator, or the operators of a module and of the modules in it, one line each.

        Args:
            name: a node's name or a module's path.
        Raises: GraphError: no entry has that name or path.
        """
        found = [e for e in self.entries if name in (e.node, e.module) or e.module.startswith(f"{name}.")]
        if not found:
            raise GraphError(
                f"coverage has no operator or module {name!r}",
                found=name,
                remedy="name a node or a module path of the exported model; iterate over the coverage to see them",
            )
        return "\n".join(map(str, found))

    def compare(self, other: "Coverage") -> tuple[tuple[CoverageEntry | None, CoverageEntry | None], ...]:
        """Entries that differ in status, row or reason, as pairs of (this, other); None where one has no such node."""
        mine, theirs = ({entry.node: entry for entry in cover} for cover in (self, other))
        names = dict.fromkeys((*mine, *theirs))
        return tuple((mine.get(n), theirs.get(n)) for n in names if mine.get(n) != theirs.get(n))

    def with_skipped(self, details: Mapping[str, str], code: ReasonCode) -> "Coverage":
        """The same coverage in which the nodes named in `details` are skipped, for a reason of this code."""
        entries = (
            replace(entry, status=CoverageStatus.SKIPPED, row="", code=code.value, detail=details[entry.node])
            if entry.node in details
            else entry
            for entry in self.entries
        )
        return Coverage(tuple(entries))

    def to_dict(self) -> dict[str, Any]:
        """Plain data that JSON can hold; `from_dict` reads it back."""
        return {"entries": [vars(entry) | {"status": entry.status.value} for entry in self.entries]}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> "Coverage":
        """Read the data that `to_dict` wrote."""
        return cls(
            tuple(CoverageEntry(**entry | {"status": CoverageStatus(entry["status"])}) for entry in data["entries"])
        )

    def __str__(self) -> str:
        return self.summary()


def operators(module: GraphModule) -> dict[str, tuple[str, str]]:
    """Operator and module path of every node that computes a floating-point tensor, by name.

    Nodes of a subgraph (a `no_grad` region, a branch) are named after it: `submod_1.linear`.
    """
    return {name: (str(node.target), module_path(node)) for name, node in _float_operators(module)}


def _float_operators(module: GraphModule, prefix: str = "") -> Iterator[tuple[str, Node]]:
    """Name and node of each float operator, in graph order. Operators of a body come where the graph reads the body."""
    for node in module.graph.nodes:
        inner = attribute(module, str(node.target)) if node.op == "get_attr" else None
        if isinstance(inner, GraphModule):
            yield from _float_operators(inner, f"{prefix}{node.target}.")
        elif _is_float_operator(node):
            yield f"{prefix}{node.name}", node


def _is_float_operator(node: Node) -> bool:
    return is_call(node) and not ops.is_quantize(node) and not ops.is_dequantize(node) and computes_float(node)


def decide_quantized(node: Node, row: str) -> None:
    """Note on a node the row that quantizes it."""
    node.meta[_DECISION_KEY] = {"row": row}


def decide_skipped(node: Node, reason: Reason) -> None:
    """Note on a node the reason why it stays in float, unless a row quantizes it."""
    node.meta.setdefault(_DECISION_KEY, {"code": reason.code.value, "detail": reason.detail})


def record_coverage(module: GraphModule, original: Mapping[str, tuple[str, str]], quantizer: str) -> Coverage:
    """Build the coverage of an annotated graph and keep it in the module's `meta`.

    Args:
        module: the annotated graph, before observers are inserted.
        original: `operators` of the graph before any pass folded operators.
        quantizer: name of the quantizer, used as the row of nodes that were annotated without a row.
    """
    entries = [_entry(name, node, quantizer) for name, node in _float_operators(module)]
    graphs = list(graph_modules(module))
    present = {f"{prefix}{node.name}" for prefix, body in graphs for node in body.graph.nodes}
    folded = {
        f"{prefix}{name}": note for prefix, body in graphs for name, note in body.meta.get(FOLDED_KEY, {}).items()
    }
    entries += [
        CoverageEntry(name, operator, path, CoverageStatus.FOLDED, row=folded.get(name, "rewritten in canonical form"))
        for name, (operator, path) in original.items()
        if name not in present
    ]
    result = Coverage(tuple(entries))
    module.meta[COVERAGE_KEY] = result.to_dict()
    return result


def _entry(name: str, node: Node, quantizer: str) -> CoverageEntry:
    place = name, str(node.target), module_path(node)
    decision = node.meta.get(_DECISION_KEY, {})
    if "row" in decision:
        return CoverageEntry(*place, CoverageStatus.QUANTIZED, row=decision["row"])
    annotation = node.meta.get(Q_ANNOTATION_KEY)
    if annotation is not None and (annotation.output_qspec or any(annotation.input_qspec_map.values())):
        return CoverageEntry(*place, CoverageStatus.QUANTIZED, row=f"annotation of {quantizer}")
    code = decision.get("code", ReasonCode.NOT_ANNOTATED.value)
    return CoverageEntry(*place, CoverageStatus.SKIPPED, code=code, detail=decision.get("detail", ""))


def coverage(module: torch.nn.Module) -> Coverage:
    """Coverage of a prepared or converted module.

    Raises: GraphError: the module did not come from `prepare_pt2e` or `convert_pt2e`.
    """
    data = getattr(module, "meta", {}).get(COVERAGE_KEY)
    if data is None:
        raise GraphError(
            "the module has no coverage",
            found=type(module).__qualname__,
            expected="a module from prepare_pt2e or convert_pt2e",
            remedy="pass the prepared or converted module",
        )
    return Coverage.from_dict(data)
