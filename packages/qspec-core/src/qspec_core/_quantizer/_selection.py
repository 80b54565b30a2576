"""Select the configuration of a node: rules by module name, module type and operator, over a global one."""

import difflib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import IntEnum
from fnmatch import fnmatchcase

from torch.fx import GraphModule, Node

from qspec_core._errors import SelectorError, module_stack
from qspec_core._quantizer._config import QuantizationConfig
from qspec_core.canonical import RECURRENT_KEY, REMOVED_KEY
from qspec_core.graph import is_call
from qspec_core.patterns import Reason, ReasonCode

__all__ = ["Rule", "RuleKind", "Selection"]


class RuleKind(IntEnum):
    """Kinds of rule. The kind with the largest value decides first."""

    GLOBAL = 0
    OPERATOR_TYPE = 1
    MODULE_TYPE = 2
    MODULE_NAME = 3


@dataclass(frozen=True)
class Rule:
    """One selector with its configuration. The configuration None switches quantization off."""

    kind: RuleKind
    selector: object
    config: QuantizationConfig | None


def _type_name(selector: object) -> str:
    return f"{selector.__module__}.{selector.__qualname__}" if isinstance(selector, type) else str(selector)


def _is_glob(selector: object) -> bool:
    return any(sign in str(selector) for sign in "*?[")


Place = tuple[str, Sequence[tuple[str, str]]]
"""Name of an operator, and path and type of each module around it, the outermost first."""


def _place(node: Node) -> Place:
    """Place of a node. A node that was written for a recurrent layer has the operator of the layer."""
    layer = node.meta.get(RECURRENT_KEY)
    return str(node.target) if layer is None else layer.operator, module_stack(node)


def _fits(rule: Rule, place: Place) -> int | None:
    """Closeness of a rule to an operator, a larger number being closer; None if the rule does not fit."""
    operator, stack = place
    if rule.kind is RuleKind.GLOBAL:
        return 0
    if rule.kind is RuleKind.OPERATOR_TYPE:
        return 0 if str(rule.selector) in (operator, operator.rpartition(".")[0]) else None
    if rule.kind is RuleKind.MODULE_TYPE:
        wanted = _type_name(rule.selector)
        depths = [depth for depth, (_, name) in enumerate(stack) if name == wanted]
    elif _is_glob(rule.selector):
        depths = [depth for depth, (path, _) in enumerate(stack) if fnmatchcase(path, str(rule.selector))]
    else:
        depths = [depth for depth, (path, _) in enumerate(stack) if path == rule.selector]
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
        """Configuration of a node, or the reason why it has none."""
        if self._filter is not None and not self._filter(node):
            return Reason(ReasonCode.EXCLUDED, "the filter function returned False")
        best: tuple[tuple[int, int, int], Rule] | None = None
        place = _place(node)
        for index, rule in enumerate(self._rules):
            closeness = _fits(rule, place)
            if closeness is not None and (best is None or (int(rule.kind), closeness, index) > best[0]):
                best = (int(rule.kind), closeness, index), rule
        if best is None:
            return Reason(ReasonCode.NOT_SELECTED)
        rule = best[1]
        if rule.config is None:
            return Reason(ReasonCode.EXCLUDED, f"{rule.kind.name.lower()} {rule.selector}".strip())
        return rule.config

    def require_matches(self, modules: Iterable[GraphModule]) -> None:
        """Check that every selector matches an operator of these graphs, or one that a pass removed from them.

        Raises: SelectorError: a selector matches nothing; the error suggests the nearest names.
        """
        rules = [rule for rule in self._rules if rule.kind is not RuleKind.GLOBAL]
        if not rules:
            return
        places: list[Place] = []
        for module in modules:
            places += (_place(node) for node in module.graph.nodes if is_call(node))
            places += module.meta.get(REMOVED_KEY, ())
        for rule in rules:
            if not any(_fits(rule, place) is not None for place in places):
                raise _matches_nothing(rule, places)


def _near_by_last_part(wanted: str, known: set[str]) -> list[str]:
    """Names whose last part is near the last part of `wanted`, for a class given without its module."""
    last = {name: name.rpartition(".")[2] for name in sorted(known)}
    near = difflib.get_close_matches(wanted.rpartition(".")[2], last.values(), n=5)
    return [name for name, part in last.items() if part in near][:5]


def _matches_nothing(rule: Rule, places: list[Place]) -> SelectorError:
    if rule.kind is RuleKind.OPERATOR_TYPE:
        wanted, known = str(rule.selector), {operator for operator, _ in places}
    elif rule.kind is RuleKind.MODULE_TYPE:
        wanted, known = _type_name(rule.selector), {name for _, stack in places for _, name in stack}
    else:
        wanted, known = str(rule.selector), {path for _, stack in places for path, _ in stack if path}
    near = difflib.get_close_matches(wanted, sorted(known), n=5, cutoff=0.4) or _near_by_last_part(wanted, known)
    label = rule.kind.name.lower().replace("_", " ")
    return SelectorError(
        f"the selector by {label} {wanted!r} matches nothing in the model",
        found=wanted,
        expected=f"near names: {', '.join(near)}" if near else f"one of {len(known)} names in the model",
        remedy=f"correct the {label}, or remove the selector",
    )
