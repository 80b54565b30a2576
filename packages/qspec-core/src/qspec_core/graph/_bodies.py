"""Bodies of control flow (`no_grad` regions, branches, loops): graphs that a graph holds and calls.

Only read here; `qspec_core.graph._sinking` moves constants into bodies and out again.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from torch import nn
from torch.fx import GraphModule, Node
from torch.fx.node import Argument

from qspec_core.graph._values import tensor_value

__all__ = ["ControlCall", "attribute", "bodies", "control_calls", "graph_modules", "loop_bodies", "set_attribute"]


@dataclass(frozen=True)
class _Form:
    """The positions of the bodies and operands among a control-flow operator's arguments.

    Args:
        bodies: its bodies.
        lists: its lists of operands; the placeholders of a body are these lists, one after the other. Empty if all
            arguments after the bodies are operands.
        fixed: only the last list is the same in every iteration.
    """

    bodies: slice
    lists: tuple[int, ...] = ()
    fixed: bool = False


_FORMS = MappingProxyType(
    {
        "wrap_with_set_grad_enabled": _Form(slice(1, 2)),
        "wrap_with_autocast": _Form(slice(4, 5)),
        "cond": _Form(slice(1, 3), (3,)),
        "while_loop": _Form(slice(0, 2), (2, 3), fixed=True),
        "scan": _Form(slice(0, 1), (1, 2, 3), fixed=True),
        "map_impl": _Form(slice(0, 1), (1, 2), fixed=True),
    }
)
"""By the operator's name. Bodies of other operators are quantized too, except their weights, which stay operands."""


@dataclass(frozen=True)
class ControlCall:
    """A call of a control-flow operator.

    Args:
        node: the call.
        readers: the `get_attr` node of each body.
        bodies: the graphs it calls; their placeholders are the operands, in order.
        operands: the arguments it passes to each body.
        first_fixed: index of the first operand that is the same in every run of a body.
    """

    node: Node
    readers: tuple[Node, ...]
    bodies: tuple[GraphModule, ...]
    operands: tuple[Argument, ...]
    first_fixed: int

    def set_fixed(self, operands: Sequence[Argument]) -> None:
        """Pass other operands to the bodies, from `first_fixed` on."""
        form, args = _FORMS[str(self.node.target)], self.node.args
        if form.lists:
            last = form.lists[-1]
            self.node.args = (*args[:last], tuple(operands), *args[last + 1 :])
        else:
            self.node.args = (*args[: form.bodies.stop], *operands)


def attribute(module: nn.Module, target: str) -> Any:  # a tensor, a module, or any other value stored there
    """The value that a `get_attr` or `call_module` target names; None if nothing has that name."""
    value: Any = module
    for atom in target.split("."):
        value = getattr(value, atom, None)
        if value is None:
            return None
    return value


def set_attribute(module: nn.Module, target: str, value: object) -> None:
    """Store a value under a target; the modules on its path must exist."""
    path, _, name = target.rpartition(".")
    setattr(attribute(module, path) if path else module, name, value)


def bodies(module: GraphModule) -> dict[str, GraphModule]:
    """The bodies that a graph names, by target, in graph order."""
    readers = (n for n in module.graph.find_nodes(op="get_attr") if tensor_value(n) is None)
    found = ((str(n.target), attribute(module, str(n.target))) for n in readers)
    return {target: body for target, body in found if isinstance(body, GraphModule)}


def graph_modules(module: GraphModule, prefix: str = "") -> Iterator[tuple[str, GraphModule]]:
    """A graph and all bodies in it, nested ones too, each with the prefix of its nodes' names: "" and "submod_1."."""
    yield prefix, module
    for target, body in bodies(module).items():
        yield from graph_modules(body, f"{prefix}{target}.")


def control_calls(module: GraphModule) -> Iterator[ControlCall]:
    """Calls of the control-flow operators listed in `_FORMS`, in graph order."""
    for node in module.graph.nodes:
        form = _FORMS.get(str(node.target)) if node.op == "call_function" else None
        if form is None:
            continue
        readers = tuple(argument for argument in node.args[form.bodies] if isinstance(argument, Node))
        called = tuple(attribute(module, str(reader.target)) for reader in readers)
        if not called or not all(isinstance(body, GraphModule) for body in called):
            continue
        if form.lists:
            lists = [tuple(node.args[index]) if index < len(node.args) else () for index in form.lists]
            operands = tuple(operand for part in lists for operand in part)
            first = len(operands) - len(lists[-1]) if form.fixed else 0
        else:
            operands, first = tuple(node.args[form.bodies.stop :]), 0
        yield ControlCall(node, readers, called, operands, first)


def loop_bodies(module: GraphModule) -> set[int]:
    """Identities of the bodies of loops in a graph, and of the bodies in them."""
    loops = [call for _, graph in graph_modules(module) for call in control_calls(graph) if _is_loop(call)]
    return {id(inner) for call in loops for body in call.bodies for _, inner in graph_modules(body)}


def _is_loop(call: ControlCall) -> bool:
    return _FORMS[str(call.node.target)].fixed
