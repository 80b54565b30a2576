"""Access to a call's operands by their name in the operator's schema, whether given by position, keyword or default."""

from collections.abc import Sequence
from functools import cache
from typing import Any, TypeGuard

from torch.fx import Graph, Node

from qspec_core._errors import GraphError
from qspec_core._torch import OpOverload, schema_of

__all__ = [
    "argument",
    "argument_names",
    "called_operator",
    "calls",
    "expand_integers",
    "is_call",
    "replace_argument",
    "written_arguments",
]


@cache
def _schema(target: OpOverload) -> tuple[tuple[str, ...], dict[str, Any], tuple[str, ...]]:
    """Argument names in order, defaults, and the names of the arguments that the operator writes to."""
    arguments = schema_of(target).arguments
    names = tuple(argument.name for argument in arguments)
    defaults = {argument.name: argument.default_value for argument in arguments if argument.has_default_value()}
    written = tuple(a.name for a in arguments if a.alias_info is not None and a.alias_info.is_write)
    return names, defaults, written


def called_operator(node: object) -> OpOverload | None:
    """The operator overload that a graph node calls; None for any other node or value."""
    if isinstance(node, Node) and node.op == "call_function" and isinstance(node.target, OpOverload):
        return node.target
    return None


def is_call(node: object, *targets: OpOverload) -> TypeGuard[Node]:
    """Whether `node` is a graph node that calls one of `targets`, or any operator overload when none is given."""
    operator = called_operator(node)
    return operator is not None and (not targets or operator in targets)


def calls(graph: Graph, *targets: OpOverload) -> list[Node]:
    """The nodes of a graph that call one of `targets`, in graph order.

    Cost: O(n log n) for n nodes found, independent of the size of the graph: torch.fx keeps an index of targets.
    """
    return sorted(
        node for target in targets for node in graph.find_nodes(op="call_function", target=target, sort=False)
    )


def _overload(node: Node) -> OpOverload:
    if not isinstance(node.target, OpOverload):
        raise GraphError(
            "the node calls no operator, so it has no operands",
            where=node,
            found=node.format_node(),
            expected="a call of a torch operator overload",
            remedy="check the node with is_call() first",
        )
    return node.target


def argument_names(target: OpOverload) -> tuple[str, ...]:
    """Names of an operator's arguments, in the order of its schema."""
    return _schema(target)[0]


def written_arguments(target: OpOverload) -> tuple[str, ...]:
    """Names of the arguments that the operator mutates; empty for a functional operator."""
    return _schema(target)[2]


def argument(node: Node, name: str) -> Any:  # an operand can be any of fx's argument types
    """Value of operand `name` of a call: a node, a constant, or the schema's default.

    Raises: GraphError: the operator has no such operand, or the call leaves it out and it has no default.
    """
    target = _overload(node)
    names, defaults, _ = _schema(target)
    if name in node.kwargs:
        return node.kwargs[name]
    if name in names:
        position = names.index(name)
        if position < len(node.args):
            return node.args[position]
        if name in defaults:
            return defaults[name]
    raise GraphError(
        f"operator {target} has no value for operand {name!r}",
        where=node,
        found=node.format_node(),
        expected=", ".join(names),
        remedy="name an operand of the operator's schema",
    )


def expand_integers(values: int | Sequence[int], count: int) -> tuple[int, ...]:
    """One integer for each of `count` dimensions, from an argument that may give one for all of them."""
    items = (values,) if isinstance(values, int) else tuple(values)
    return items * count if len(items) == 1 else items


def replace_argument(node: Node, name: str, value: Any) -> None:  # as in `argument`
    """Set operand `name` of a call: by position if it is given by position or is the next one, else by keyword.

    Raises: GraphError: the operator has no such operand.
    """
    names = argument_names(_overload(node))
    if name not in names:
        argument(node, name)  # raises with the place
    position = names.index(name)
    if position < len(node.args):
        node.update_arg(position, value)
    elif position == len(node.args) and name not in node.kwargs:
        node.args = (*node.args, value)
    else:
        node.update_kwarg(name, value)
