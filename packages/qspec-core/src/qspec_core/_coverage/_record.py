"""Build the coverage of an annotated graph, and keep it in the module's `meta`."""

from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core import ops
from qspec_core._coverage._report import Coverage, CoverageEntry, CoverageStatus
from qspec_core._errors import GraphError, module_path
from qspec_core._spec import Q_ANNOTATION_KEY
from qspec_core.canonical import FOLDED_KEY
from qspec_core.canonical._recurrent import layers_of_recurrent
from qspec_core.graph import attribute, computes_float, constant_value, graph_modules, is_call
from qspec_core.graph._mutation import mutated_attributes
from qspec_core.graph._work import multiply_adds
from qspec_core.patterns import Reason, ReasonCode

__all__ = [
    "COVERAGE_KEY",
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


def decide_quantized(node: Node, row: str, *, takes_integers: bool, remark: str = "") -> None:
    """Note on a node the row that quantizes it, whether its activations are integers, and a remark about how."""
    node.meta[_DECISION_KEY] = {"row": row, "takes_integers": takes_integers, "detail": remark}


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
    expanded, by_name = layers_of_recurrent(module), {entry.node: entry for entry in entries}
    for name, place in original.items():
        if name in expanded:
            entries.append(_of_recurrent(name, place, [by_name[part] for part in expanded[name]]))
        elif name not in present:
            note = folded.get(name, "rewritten in canonical form")
            entries.append(CoverageEntry(name, *place, CoverageStatus.FOLDED, row=note))
    result = Coverage(tuple(entries))
    module.meta[COVERAGE_KEY] = result.to_dict()
    return result


def _of_recurrent(name: str, place: tuple[str, str], parts: Sequence[CoverageEntry]) -> CoverageEntry:
    """The entry of a recurrent layer: quantized if all its linear layers are. They have the weights."""
    skipped = [part for part in parts if part.status is not CoverageStatus.QUANTIZED]
    if not skipped:
        return CoverageEntry(name, *place, CoverageStatus.QUANTIZED, row=parts[0].row)
    detail = f"{len(skipped)} of its {len(parts)} linear layers stay in float: {skipped[0].detail}"
    return CoverageEntry(name, *place, CoverageStatus.SKIPPED, code=skipped[0].code, detail=detail)


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
        return CoverageStatus.QUANTIZED, decision["row"], "", decision.get("detail", "")
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
