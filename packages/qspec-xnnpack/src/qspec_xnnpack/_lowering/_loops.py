"""Loops: the body of each is compiled as a program of its own, and put into the program around it.

ExecuTorch (1.5.1) partitions the bodies of control flow, but gives the delegate no weights there: they are operands.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.infra.pass_base import PassResult

from qspec_core import LoweringError, SourceLocation
from qspec_core.canonical import expand_recurrent_layers
from qspec_core.graph import attribute, is_call, tensor_value
from qspec_xnnpack._lowering._executorch import Compiled

__all__ = ["Loop", "example_states", "put_back", "take_loops", "write_recurrent_layers"]

_SCAN = torch.ops.higher_order.scan
_CLONE = torch.ops.aten.clone.default


@dataclass(frozen=True)
class Loop:
    """A loop whose body is compiled apart.

    Args:
        name: name of the loop's node.
        position: its position among the loops of the graph.
        body: its body, which returns each value once.
        results: for each result of the loop's original body, the index of the value.
    """

    name: str
    position: int
    body: GraphModule
    results: tuple[int, ...]


def write_recurrent_layers(module: GraphModule) -> None:
    """Write the recurrent layers that stay in float as loops, in place. ExecuTorch would write out every step: 28 s
    for 40 steps."""
    expand_recurrent_layers(module, lambda _: True)


def take_loops(module: GraphModule) -> tuple[Loop, ...]:
    """Replace the body of each loop by one that returns copies of its operands, in place, and return the loops.

    A loop with a result that has the shape of no operand is left as it is.

    Args:
        module: a graph that the caller owns, whose bodies hold their constants as attributes.
    """
    taken = []
    for position, node in enumerate(module.graph.find_nodes(op="call_function", target=_SCAN)):
        target = str(node.args[0].target)
        body = attribute(module, target)
        results = list(body.graph.output_node().args[0])
        inside = body.graph.find_nodes(op="placeholder")
        sources = [_alike(value, index, inside) for index, value in enumerate(results)]
        if None in sources:
            continue
        graph = Graph()
        operands = [graph.placeholder(place.name) for place in inside]
        copies = [graph.call_function(_CLONE, (operands[source],)) for source in sources if source is not None]
        graph.output(copies)
        setattr(module, target, GraphModule({}, graph))
        kept = [value.args[0] if is_call(value, _CLONE) and value.args[0] in results else value for value in results]
        unique = list(dict.fromkeys(kept))
        body.graph.output_node().args = (tuple(unique),)
        body.graph.eliminate_dead_code()
        body.recompile()
        taken.append(Loop(node.name, position, body, tuple(unique.index(value) for value in kept)))
    return tuple(taken)


def _alike(value: Node, index: int, operands: Sequence[Node]) -> int | None:
    """Index of an operand with the shape and dtype of a result: the state itself, or another one."""
    wanted = _form(value)
    order = [index % len(operands), *range(len(operands))]
    return next((place for place in order if wanted is not None and _form(operands[place]) == wanted), None)


def _form(node: Node) -> tuple[str, torch.dtype] | None:
    value = tensor_value(node)
    return None if value is None else (str(value.shape), value.dtype)


def example_states(program: torch.export.ExportedProgram) -> list[tuple[torch.Tensor, ...]]:
    """Operands of one step of each loop of an exported program, in graph order."""
    found = []
    for node in program.graph.find_nodes(op="call_function", target=_SCAN):
        _, states, inputs, operands = node.args
        values = [
            *(n.meta["val"] for n in states),
            *(n.meta["val"][0] for n in inputs),
            *(n.meta["val"] for n in operands),
        ]
        found.append(tuple(torch.zeros(tuple(map(int, value.shape)), dtype=value.dtype) for value in values))
    return found


def put_back(compiled: Compiled, loops: Sequence[Loop], bodies: Sequence[Compiled]) -> Compiled:
    """Put compiled bodies into the compiled program around them.

    Raises: LoweringError: a body has constants outside the delegate.
    """
    for loop, body in zip(loops, bodies, strict=True):
        signature = body.manager.exported_program().graph_signature
        if len(signature.user_inputs) != len(signature.input_specs):
            raise LoweringError(
                f"the body of loop {loop.name} has operators with constants that the delegate does not run",
                where=SourceLocation.of(loop.body.graph.output_node()),
                found=", ".join(body.outside),
                expected="a body that the delegate runs as a whole, or operators without constants",
                remedy="leave the module out: quantizer.set_module_name(<its path>, None)",
            )

    def replace_bodies(module: GraphModule) -> PassResult:
        nodes = module.graph.find_nodes(op="call_function", target=_SCAN)
        for loop, body in zip(loops, bodies, strict=True):
            inner = body.manager.exported_program().graph_module
            output = inner.graph.output_node()
            output.args = ([output.args[0][index] for index in loop.results],)
            inner.recompile()
            setattr(module, str(nodes[loop.position].args[0].target), inner)
        return PassResult(module, True)

    manager: Any = compiled.manager.transform([replace_bodies])
    return replace(
        compiled,
        manager=manager,
        delegates=compiled.delegates + sum(body.delegates for body in bodies),
        outside=(*compiled.outside, *(name for body in bodies for name in body.outside)),
        refusals=(*compiled.refusals, *(refusal for body in bodies for refusal in body.refusals)),
    )
