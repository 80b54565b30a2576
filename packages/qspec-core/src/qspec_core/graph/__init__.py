"""Queries and edits of exported graphs: operands, values, constants, bodies of control flow, copies."""

from qspec_core._torch import symbol_range
from qspec_core.graph._arguments import (
    argument,
    argument_names,
    called_operator,
    calls,
    expand_integers,
    is_call,
    replace_argument,
    written_arguments,
)
from qspec_core.graph._attributes import add_constant, constant_value, fresh_attribute_name
from qspec_core.graph._bodies import attribute, bodies, graph_modules, set_attribute
from qspec_core.graph._copies import copy_graph_module, gc_paused, wrap_graph
from qspec_core.graph._exported import WrapperModule, model_is_exported, require_exported
from qspec_core.graph._metadata import derived_meta, port_meta
from qspec_core.graph._observers import is_observer, observer_nodes, require_no_observers
from qspec_core.graph._sinking import lift_constants, sink_constants
from qspec_core.graph._values import computes_float, is_float, is_view, require_tensor_value, tensor_value

__all__ = [
    "WrapperModule",
    "add_constant",
    "argument",
    "argument_names",
    "attribute",
    "bodies",
    "called_operator",
    "calls",
    "computes_float",
    "constant_value",
    "copy_graph_module",
    "derived_meta",
    "expand_integers",
    "fresh_attribute_name",
    "gc_paused",
    "graph_modules",
    "is_call",
    "is_float",
    "is_observer",
    "is_view",
    "lift_constants",
    "model_is_exported",
    "observer_nodes",
    "port_meta",
    "replace_argument",
    "require_exported",
    "require_no_observers",
    "require_tensor_value",
    "set_attribute",
    "sink_constants",
    "symbol_range",
    "tensor_value",
    "wrap_graph",
    "written_arguments",
]
