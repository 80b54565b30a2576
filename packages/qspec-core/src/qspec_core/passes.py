"""Graph passes under their PT2E names, for anyone who composes a flow from parts.

A graph from `convert_pt2e` needs none of them: it has a dequantize for each reader, and the metadata is in place.
"""

from torch.fx import GraphModule, Node
from torch.fx.passes.infra.pass_base import PassBase, PassResult

from qspec_core import ops
from qspec_core._quantizer import is_valid_annotation
from qspec_core._reference import to_reference
from qspec_core._spec import Q_ANNOTATION_KEY
from qspec_core.graph import port_meta
from qspec_core.graph._folding import constant_fold

__all__ = ["DuplicateDQPass", "PortNodeMetaForQDQ", "constant_fold", "reference_representation_rewrite"]

_CHOOSES = (
    ops.CHOOSE_QPARAMS,
    ops.CHOOSE_QPARAMS_SYMMETRIC,
    ops.CHOOSE_QPARAMS_PER_TOKEN,
    ops.CHOOSE_QPARAMS_PER_TOKEN_ASYMMETRIC,
)

reference_representation_rewrite = to_reference
"""The PT2E name of `to_reference`: a converted graph in integer arithmetic."""


def _chooser(quantize: Node) -> Node | None:
    """The `choose_qparams` call that computes a quantize's parameters at run time; None if they are constant."""
    items = (source for source in quantize.all_input_nodes[1:] if source.op == "call_function")
    return next((chosen for item in items for chosen in item.all_input_nodes if chosen.target in _CHOOSES), None)


class DuplicateDQPass(PassBase):
    """Gives each annotated reader its own dequantize, except those whose scale is computed at run time."""

    def call(self, graph_module: GraphModule) -> PassResult:
        """Edit a graph in place. Cost: O(nodes + edges)."""
        graph, modified = graph_module.graph, False
        for node in list(graph.nodes):
            if not ops.is_dequantize(node) or _chooser(node.all_input_nodes[0]) is not None:
                continue
            readers = [reader for reader in node.users if is_valid_annotation(reader.meta.get(Q_ANNOTATION_KEY))]
            for reader in readers if len(readers) < len(node.users) else readers[1:]:
                with graph.inserting_before(reader):
                    reader.replace_input_with(node, graph.node_copy(node))
                modified = True
        if modified:
            graph_module.recompile()
        return PassResult(graph_module, modified)


class PortNodeMetaForQDQ(PassBase):
    """Copies `stack_trace` and `quantization_tag` of annotated operators to their quantizes and dequantizes.

    The dequantize of an annotated input gets them from its reader, the quantize of an annotated output from its
    producer, and the quantize of a constant from the constant.
    """

    def call(self, graph_module: GraphModule) -> PassResult:
        """Edit metadata in place. Cost: O(nodes + edges)."""
        for node in graph_module.graph.nodes:
            annotation = node.meta.get(Q_ANNOTATION_KEY)
            if annotation is None or not is_valid_annotation(annotation):
                continue
            asked = {source for source, spec in annotation.input_qspec_map.items() if spec is not None}
            for dequantize in node.all_input_nodes:
                if ops.is_dequantize(dequantize) and _before_quantization(dequantize) in asked:
                    _port_input(node, dequantize)
            for quantize in node.users if annotation.output_qspec is not None else ():
                if ops.is_quantize(quantize):
                    port_meta(node, quantize)
        return PassResult(graph_module, True)


def _before_quantization(node: Node) -> Node:
    """The tensor before a chain of quantizes and dequantizes."""
    while ops.is_quantize(node) or ops.is_dequantize(node):
        node = node.all_input_nodes[0]
    return node


def _port_input(reader: Node, dequantize: Node) -> None:
    port_meta(reader, dequantize)
    quantize = dequantize.all_input_nodes[0]
    if not ops.is_quantize(quantize):
        return
    chosen, source = _chooser(quantize), quantize.all_input_nodes[0]
    if chosen is not None:
        port_meta(reader, quantize)
        port_meta(reader, chosen)
    elif source.op == "get_attr":
        port_meta(source, quantize)
