"""Constants of control-flow bodies: moved into the bodies for the passes, and out again for `torch.export`.

Export passes every constant to a body as an operand, so that inside the body a weight is a placeholder. Prepare moves
the constants into the bodies, so that every pass finds them as in any graph. Convert moves them out again, because
export cannot trace a body that holds tensors (torch 2.13 leaves fake tensors in the program).
"""

from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core.graph._attributes import constant_value, fresh_attribute_name
from qspec_core.graph._bodies import ControlCall, attribute, bodies, control_calls
from qspec_core.graph._mutation import mutated_attributes, written_roots
from qspec_core.graph._values import tensor_value

__all__ = ["ORIGIN_KEY", "lift_constants", "sink_constants"]

ORIGIN_KEY = "qspec_origin"
"""Key in the metadata of a body's `get_attr` node: name of the same tensor in the graph around the body."""


def sink_constants(module: GraphModule) -> None:
    """Turn the constant operands of each body into attributes of the body. The tensors are shared, not copied.

    A tensor that the graph or a body writes to stays an operand. So do the operands of a body that two calls share.
    Nodes that export left without a module path get the path of the call.

    Args:
        module: a graph module that qspec owns, with the bodies in it. Their code is left as it was.
    Cost: O(nodes + edges); no tensor is copied.
    """
    mutated = mutated_attributes(module)
    for call in control_calls(module):
        _inherit_stack(call)
        sunk = _sinkable(module, call, mutated)
        for body in call.bodies:
            placeholders = body.graph.find_nodes(op="placeholder")
            for index, (target, value) in sunk.items():
                _sink(body, placeholders[index], target, value)
        if sunk:
            fixed = range(call.first_fixed, len(call.operands))
            call.set_fixed([call.operands[index] for index in fixed if index not in sunk])
    for constant in module.graph.find_nodes(op="get_attr"):
        if not constant.users:
            module.graph.erase_node(constant)
    for body in bodies(module).values():
        sink_constants(body)


def _sinkable(module: GraphModule, call: ControlCall, mutated: set[str]) -> dict[int, tuple[str, Tensor]]:
    """Target and tensor of each operand that is a constant for every body, by index."""
    if any(len(reader.users) > 1 for reader in call.readers):
        return {}
    written = [written_roots(body) for body in call.bodies]
    places = [body.graph.find_nodes(op="placeholder") for body in call.bodies]
    found: dict[int, tuple[str, Tensor]] = {}
    for index in range(call.first_fixed, len(call.operands)):
        operand = call.operands[index]
        value = constant_value(module, operand)
        if value is None or not isinstance(operand, Node) or str(operand.target) in mutated:
            continue
        if not any(inside[index] in roots for inside, roots in zip(places, written, strict=True)):
            found[index] = str(operand.target), value
    return found


def _sink(body: GraphModule, placeholder: Node, target: str, value: Tensor) -> None:
    if placeholder.users:
        name = placeholder.name
        while hasattr(body, name):
            name += "_"
        if isinstance(value, nn.Parameter):
            body.register_parameter(name, value)
        else:
            body.register_buffer(name, value)
        with body.graph.inserting_before(placeholder):
            constant = body.graph.get_attr(name)
        constant.meta = placeholder.meta | {ORIGIN_KEY: target}
        placeholder.replace_all_uses_with(constant)
    body.graph.erase_node(placeholder)


def _inherit_stack(call: ControlCall) -> None:
    stack = call.node.meta.get("nn_module_stack")
    for body in call.bodies if stack else ():
        for node in body.graph.nodes:
            if node.op == "call_function" and not node.meta.get("nn_module_stack"):
                node.meta["nn_module_stack"] = stack


def lift_constants(module: GraphModule) -> None:
    """Turn the tensors that bodies hold back into operands, which the graph around the bodies reads as attributes.

    The graph keeps each tensor under the name that it has for it, or under a new one.

    Args:
        module: a graph module that qspec owns, with the bodies in it. Their code is generated again, one by one.
    Cost: O(nodes + edges).
    """
    for call in control_calls(module):
        lifted: dict[int, Node] = {}  # by the tensor's identity: the node around the body that reads it
        readers = [_held(body) for body in call.bodies]
        for constant, value in (entry for held in readers for entry in held):
            if id(value) not in lifted:
                lifted[id(value)] = _read_outside(module, constant, value)
        for body, held in zip(call.bodies, readers, strict=True):
            _read_operands(body, list(lifted), held)
        call.set_fixed([*call.operands[call.first_fixed :], *lifted.values()])
    module.recompile()


def _read_outside(module: GraphModule, constant: Node, value: Tensor) -> Node:
    name = _keep(module, constant.meta.get(ORIGIN_KEY), str(constant.target), value)
    with module.graph.inserting_before(next(iter(module.graph.nodes))):
        node = module.graph.get_attr(name)
    node.meta = {"val": tensor_value(constant)}
    return node


def _held(body: GraphModule) -> list[tuple[Node, Tensor]]:
    """The nodes of a body that read the body's own tensors."""
    constants = ((node, constant_value(body, node)) for node in body.graph.find_nodes(op="get_attr"))
    return [(node, value) for node, value in constants if value is not None]


def _keep(module: GraphModule, origin: str | None, name: str, value: Tensor) -> str:
    """Store a tensor in a graph, unless it is there already, and return its target."""
    target = origin
    if target is None or not any(attribute(module, target) is known for known in (None, value)):
        target = fresh_attribute_name(module, name.rstrip("0123456789"))
    path, _, field = target.rpartition(".")
    owner: nn.Module = module
    for part in path.split(".") if path else ():
        if not hasattr(owner, part):
            owner.add_module(part, nn.Module())
        owner = getattr(owner, part)
    if not hasattr(owner, field):
        if isinstance(value, nn.Parameter):
            owner.register_parameter(field, value)
        else:
            owner.register_buffer(field, value)
    return target


def _read_operands(body: GraphModule, tensors: list[int], held: list[tuple[Node, Tensor]]) -> None:
    """Add a placeholder for each tensor, by its identity, after the existing placeholders."""
    existing = body.graph.find_nodes(op="placeholder")
    spot = existing[-1].next if existing else next(iter(body.graph.nodes))
    added: dict[int, Node] = {}
    for tensor in tensors:
        with body.graph.inserting_before(spot):
            added[tensor] = body.graph.placeholder(f"constant_{len(added)}")
    for constant, value in held:
        placeholder = added[id(value)]
        placeholder.meta = {key: kept for key, kept in constant.meta.items() if key != ORIGIN_KEY}
        constant.replace_all_uses_with(placeholder)
        body.graph.erase_node(constant)
        path, _, field = str(constant.target).rpartition(".")
        owner = attribute(body, path) if path else body
        if hasattr(owner, field):
            delattr(owner, field)
    body.recompile()
