"""Coverage: the report of every floating-point operator of a model, as plain data that prints and serializes."""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core import ops
from qspec_core._errors import GraphError, module_path
from qspec_core._spec import Q_ANNOTATION_KEY
from qspec_core.canonical import FOLDED_KEY
from qspec_core.graph import attribute, computes_float, constant_value, graph_modules, is_call
from qspec_core.graph._layers import EMBEDDINGS, LAYERS, NORMALIZATIONS, RECURRENT, RECURRENT_CELLS
from qspec_core.graph._mutation import mutated_attributes
from qspec_core.graph._work import multiply_adds
from qspec_core.patterns import Reason, ReasonCode

__all__ = [
    "COVERAGE_KEY",
    "Coverage",
    "CoverageEntry",
    "CoverageStatus",
    "coverage",
    "decide_folded",
    "decide_quantized",
    "decide_skipped",
    "operators",
    "record_coverage",
]

COVERAGE_KEY = "qspec_coverage"
"""Key of a module's coverage in its `meta`, as plain data."""
_DECISION_KEY = "qspec_decision"

_LAYERS = frozenset(map(str, LAYERS))
_KINDS = (
    ("convolution and linear layers", _LAYERS),
    ("recurrent layers", frozenset(map(str, (*RECURRENT, *RECURRENT_CELLS)))),
    ("embeddings", frozenset(map(str, EMBEDDINGS))),
    ("normalizations", frozenset(map(str, NORMALIZATIONS))),
)
"""Kinds of operators that hold weights, in the order of the summary."""
_OTHER_KIND = "other operators with weights"


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
        weight_bytes: bytes of the float constants (parameters, buffers that are not written to) that it reads, in the
            float model. A tensor that several operators read counts for the first of them only; if some of them are
            quantized and some are not, for the first of either.
        integer_weight_bytes: the part of `weight_bytes` that is stored as integers.
        multiply_adds: multiply-adds of one call with the example inputs; 0 for an operator without products, and where
            a size is not known.
        integer_multiply_adds: `multiply_adds`, if its activations are integers too; else 0.
    """

    node: str
    operator: str
    module: str
    status: CoverageStatus
    row: str = ""
    code: str = ""
    detail: str = ""
    weight_bytes: int = 0
    integer_weight_bytes: int = 0
    multiply_adds: int = 0
    integer_multiply_adds: int = 0

    @property
    def kind(self) -> str:
        """Its kind among operators that hold weights, as the summary names it; "" if it holds none."""
        found = next((name for name, operators in _KINDS if self.operator in operators), None)
        return found if found is not None else _OTHER_KIND if self.weight_bytes else ""

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
        """Convolutions and linear layers, folded ones included. Recurrent layers and embeddings are not among them."""
        return tuple(entry for entry in self.entries if entry.is_layer)

    @property
    def quantized_layers(self) -> tuple[CoverageEntry, ...]:
        """Convolutions and linear layers that some row quantized."""
        return tuple(entry for entry in self.layers if entry.status is CoverageStatus.QUANTIZED)

    @property
    def integer_weight_share(self) -> float:
        """The part of the bytes of weights that is stored as integers, from 0 to 1; 0 for a model without weights."""
        return self._share(sum(e.integer_weight_bytes for e in self), sum(e.weight_bytes for e in self))

    @property
    def integer_multiply_add_share(self) -> float:
        """The part of the multiply-adds that takes integers, from 0 to 1; 0 for a model without products."""
        return self._share(sum(e.integer_multiply_adds for e in self), sum(e.multiply_adds for e in self))

    @staticmethod
    def _share(part: int, whole: int) -> float:
        return part / whole if whole else 0.0

    def summary(self) -> str:
        """A headline, then one line for each reason, the most frequent first, then one line for each way in which
        layers were folded.

        The headline counts the operators that hold weights, by kind, gives the shares of bytes and of multiply-adds in
        integers, and counts all operators.
        """
        reasons = Counter((entry.operator, entry.reason) for entry in self.skipped)
        gone = Counter((entry.operator, entry.row) for entry in self.layers if entry.status is CoverageStatus.FOLDED)
        told = (*reasons.most_common(), *gone.most_common())
        lines = [f"  {count} x {operator}: {reason}" for (operator, reason), count in told]
        return "\n".join([self._headline(), *lines])

    def _headline(self) -> str:
        counts = [f"{len(self.quantized_layers)} of {len(self.layers)} {_KINDS[0][0]} quantized"]
        for kind in (*(name for name, _ in _KINDS[1:]), _OTHER_KIND):
            held = [e for e in self if e.kind == kind and e.status is not CoverageStatus.FOLDED]
            if held:
                counts.append(f"{len([e for e in held if e.status is CoverageStatus.QUANTIZED])} of {len(held)} {kind}")
        parts = [", ".join(counts)]
        weights, work = (sum(getattr(e, name) for e in self) for name in ("weight_bytes", "multiply_adds"))
        shares = [f"{self.integer_weight_share:.1%} of {weights:,} bytes of weights"] if weights else []
        shares += [f"{self.integer_multiply_add_share:.1%} of {work:,} multiply-adds"] if work else []
        parts += [f"{' and '.join(shares)} in integers"] if shares else []
        parts.append(
            f"{len(self.quantized)} operators quantized, {len(self.with_status(CoverageStatus.FOLDED))} folded, "
            f"{len(self.skipped)} skipped"
        )
        return "; ".join(parts)

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
        return tuple((mine.get(n), theirs.get(n)) for n in names if _outcome(mine.get(n)) != _outcome(theirs.get(n)))

    def with_skipped(self, details: Mapping[str, str], code: ReasonCode) -> "Coverage":
        """The same coverage in which the nodes named in `details` are skipped, for a reason of this code."""
        entries = (
            replace(
                entry,
                status=CoverageStatus.SKIPPED,
                row="",
                code=code.value,
                detail=details[entry.node],
                integer_multiply_adds=0,
            )
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


def _outcome(entry: CoverageEntry | None) -> tuple[str, ...] | None:
    """The fields that `Coverage.compare` compares."""
    if entry is None:
        return None
    return entry.operator, entry.module, entry.status.value, entry.row, entry.code, entry.detail


def operators(module: GraphModule) -> dict[str, tuple[str, str]]:
    """Operator and module path of every node that computes a floating-point tensor, by name.

    Nodes of a subgraph (a `no_grad` region, a branch) are named after it: `submod_1.linear`.
    """
    return {name: (str(node.target), module_path(node)) for name, _, node in _float_operators(module)}


def _float_operators(module: GraphModule, prefix: str = "") -> Iterator[tuple[str, GraphModule, Node]]:
    """Name, graph and node of each float operator, in graph order; those of a body where the graph reads the body."""
    for node in module.graph.nodes:
        inner = attribute(module, str(node.target)) if node.op == "get_attr" else None
        if isinstance(inner, GraphModule):
            yield from _float_operators(inner, f"{prefix}{node.target}.")
        elif _is_float_operator(node):
            yield f"{prefix}{node.name}", module, node


def _is_float_operator(node: Node) -> bool:
    return is_call(node) and not ops.is_quantize(node) and not ops.is_dequantize(node) and computes_float(node)


def decide_quantized(node: Node, row: str, *, takes_integers: bool) -> None:
    """Note on a node the row that quantizes it, and whether its activations are integers."""
    node.meta[_DECISION_KEY] = {"row": row, "takes_integers": takes_integers}


def decide_folded(node: Node, note: str) -> None:
    """Note on a node that convert removes it, and how. It stays in the graph for training."""
    node.meta[_DECISION_KEY] = {"folded": note}


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
    entries = _entries(module, quantizer)
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


def _entries(module: GraphModule, quantizer: str) -> list[CoverageEntry]:
    mutated: dict[int, set[str]] = {}
    counted: set[tuple[int, bool]] = set()
    entries: list[CoverageEntry] = []
    for name, body, node in _float_operators(module):
        status, row, code, detail = _decision_of(node, quantizer)
        is_quantized = status is CoverageStatus.QUANTIZED
        whole = integers = 0
        for source in dict.fromkeys(node.all_input_nodes):
            value = _weight(body, source, mutated)
            if value is None or (id(value), is_quantized) in counted:
                continue
            counted.add((id(value), is_quantized))
            whole += value.nbytes
            integers += value.nbytes if _has_integer_spec(node, source) else 0
        work = multiply_adds(node)
        in_integers = work if work and is_quantized and _takes_integers(body, node) else 0
        place = name, str(node.target), module_path(node)
        entries.append(CoverageEntry(*place, status, row, code, detail, whole, integers, work, in_integers))
    return entries


def _weight(body: GraphModule, source: Node, mutated: dict[int, set[str]]) -> Tensor | None:
    """The floating-point constant that a node reads; None for anything else, state of the graph included.

    Args:
        body: the graph that holds the node.
        source: the node.
        mutated: the buffers that each graph writes to, by its identity; filled when one must be known.
    """
    value = constant_value(body, source)
    if value is None or not value.is_floating_point():
        return None
    if not isinstance(value, nn.Parameter):
        if id(body) not in mutated:
            mutated[id(body)] = mutated_attributes(body)
        if str(source.target) in mutated[id(body)]:
            return None
    return value


def _has_integer_spec(node: Node, source: Node) -> bool:
    """Whether an edge has a spec of integers. A shared spec has no dtype of its own and counts as integers."""
    annotation = node.meta.get(Q_ANNOTATION_KEY)
    spec = None if annotation is None else annotation.input_qspec_map.get(source)
    dtype = getattr(spec, "dtype", None)
    return spec is not None and not (isinstance(dtype, torch.dtype) and dtype.is_floating_point)


def _takes_integers(module: GraphModule, node: Node) -> bool:
    """Whether an operator's activations are integers, as noted by the quantizer of its row, else by its annotation."""
    noted: bool | None = node.meta.get(_DECISION_KEY, {}).get("takes_integers")
    if noted is not None:
        return noted
    inputs = [source for source in node.all_input_nodes if _has_integer_spec(node, source)]
    return any(constant_value(module, source) is None for source in inputs)


def _decision_of(node: Node, quantizer: str) -> tuple[CoverageStatus, str, str, str]:
    """Status, row, code and detail of an operator."""
    decision = node.meta.get(_DECISION_KEY, {})
    if "folded" in decision:
        return CoverageStatus.FOLDED, decision["folded"], "", ""
    if "row" in decision:
        return CoverageStatus.QUANTIZED, decision["row"], "", ""
    annotation = node.meta.get(Q_ANNOTATION_KEY)
    if annotation is not None and (annotation.output_qspec or any(annotation.input_qspec_map.values())):
        return CoverageStatus.QUANTIZED, f"annotation of {quantizer}", "", ""
    return CoverageStatus.SKIPPED, "", decision.get("code", ReasonCode.NOT_ANNOTATED.value), decision.get("detail", "")


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
