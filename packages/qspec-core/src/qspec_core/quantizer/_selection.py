"""Which configuration a node gets: rules by module name, module type and operator, over a global one."""

import difflib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase

from torch.fx import Graph, Node

from qspec_core._torch import OpOverload
from qspec_core.errors import SelectorError
from qspec_core.patterns import Reason, ReasonCode, is_call
from qspec_core.quantizer._config import QuantizationConfig

__all__ = ["Rule", "RuleKind", "Selection"]


class RuleKind(IntEnum):
    """Kinds of rule, the one that decides first having the largest value."""

    GLOBAL = 0
    OPERATOR_TYPE = 1
    MODULE_TYPE = 2
    MODULE_NAME = 3


@dataclass(frozen=True)
class Rule:
    """One selector with its configuration; None switches quantization off there."""

    kind: RuleKind
    selector: object
    config: QuantizationConfig | None


def _stack(node: Node) -> Iterator[tuple[str, str]]:
    """Path and qualified type name of the modules around a node, the outermost first."""
    for path, kind in (node.meta.get("nn_module_stack") or {}).values():
        name = kind if isinstance(kind, str) else f"{kind.__module__}.{kind.__qualname__}"
        yield str(path).removeprefix("L['self']").removeprefix("."), name


def _type_name(selector: object) -> str:
    return f"{selector.__module__}.{selector.__qualname__}" if isinstance(selector, type) else str(selector)


def _is_glob(selector: object) -> bool:
    return any(sign in str(selector) for sign in "*?[")


def _fits(rule: Rule, node: Node) -> int | None:
    """How closely a rule fits a node (a larger number is closer); None if it does not."""
    if rule.kind is RuleKind.GLOBAL:
        return 0
    if rule.kind is RuleKind.OPERATOR_TYPE:
        packet = node.target.overloadpacket if isinstance(node.target, OpOverload) else None
        return 0 if rule.selector in (node.target, packet) else None
    if rule.kind is RuleKind.MODULE_TYPE:
        wanted = _type_name(rule.selector)
        depths = [depth for depth, (_, name) in enumerate(_stack(node)) if name == wanted]
    elif _is_glob(rule.selector):
        depths = [depth for depth, (path, _) in enumerate(_stack(node)) if fnmatchcase(path, str(rule.selector))]
    else:
        depths = [depth for depth, (path, _) in enumerate(_stack(node)) if path == rule.selector]
    return depths[-1] if depths else None


class Selection:
    """The rules of a quantizer.

    A rule by module name decides before one by module type, that before one by operator, that before the global one.
    Within a kind, the rule that fits the innermost module decides; among equals, the one set last.
    """

    def __init__(self) -> None:
        self._rules: list[Rule] = []
        self._filter: Callable[[Node], bool] | None = None

    @property
    def rules(self) -> tuple[Rule, ...]:
        """The rules, in the order in which they were set."""
        return tuple(self._rules)

    @property
    def has_configuration(self) -> bool:
        """Whether some rule asks for quantization."""
        return any(rule.config is not None for rule in self._rules)

    @property
    def global_config(self) -> QuantizationConfig | None:
        """Configuration of the global rule."""
        found = [rule.config for rule in self._rules if rule.kind is RuleKind.GLOBAL]
        return found[-1] if found else None

    def add(self, rule: Rule) -> None:
        """Set a rule; one with the same selector is replaced."""
        self._rules = [old for old in self._rules if (old.kind, old.selector) != (rule.kind, rule.selector)]
        self._rules.append(rule)

    def set_filter(self, predicate: Callable[[Node], bool] | None) -> None:
        """Leave in float every anchor for which the predicate is false."""
        self._filter = predicate

    def choose(self, node: Node) -> QuantizationConfig | Reason:
        """Configuration of a node, or why it has none."""
        if self._filter is not None and not self._filter(node):
            return Reason(ReasonCode.EXCLUDED, "the filter function declines it")
        best: tuple[tuple[int, int, int], Rule] | None = None
        for index, rule in enumerate(self._rules):
            closeness = _fits(rule, node)
            if closeness is not None and (best is None or (int(rule.kind), closeness, index) > best[0]):
                best = (int(rule.kind), closeness, index), rule
        if best is None:
            return Reason(ReasonCode.NOT_SELECTED)
        rule = best[1]
        if rule.config is None:
            return Reason(ReasonCode.EXCLUDED, f"{rule.kind.name.lower()} {rule.selector}".strip())
        return rule.config

    def require_matches(self, graphs: Iterable[Graph]) -> None:
        """Check that every selector matches some node of these graphs.

        Raises: SelectorError: one matches nothing; it suggests the nearest names.
        """
        nodes = [node for graph in graphs for node in graph.nodes if is_call(node)]
        for rule in self._rules:
            if rule.kind is not RuleKind.GLOBAL and not any(_fits(rule, node) is not None for node in nodes):
                raise _nothing(rule, nodes)


def _near_by_last_part(wanted: str, known: set[str]) -> list[str]:
    """Names whose last part is near that of `wanted`: a class given without its module, say."""
    last = {name: name.rpartition(".")[2] for name in sorted(known)}
    near = difflib.get_close_matches(wanted.rpartition(".")[2], last.values(), n=5)
    return [name for name, part in last.items() if part in near][:5]


def _nothing(rule: Rule, nodes: list[Node]) -> SelectorError:
    if rule.kind is RuleKind.OPERATOR_TYPE:
        wanted, known = str(rule.selector), {str(node.target) for node in nodes}
    elif rule.kind is RuleKind.MODULE_TYPE:
        wanted, known = _type_name(rule.selector), {name for node in nodes for _, name in _stack(node)}
    else:
        wanted, known = str(rule.selector), {path for node in nodes for path, _ in _stack(node) if path}
    near = difflib.get_close_matches(wanted, sorted(known), n=5, cutoff=0.4) or _near_by_last_part(wanted, known)
    label = rule.kind.name.lower().replace("_", " ")
    return SelectorError(
        f"the selector by {label} {wanted!r} matches nothing in the model",
        found=wanted,
        expected=f"near names: {', '.join(near)}" if near else f"one of {len(known)} names in the model",
        remedy=f"correct the {label}, or remove the selector",
    )
