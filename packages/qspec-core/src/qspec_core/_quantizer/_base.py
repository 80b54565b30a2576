"""The interface of every quantizer, and functions that write annotations."""

from abc import ABC, abstractmethod
from collections.abc import Callable

from torch import nn
from torch.fx import GraphModule, Node

from qspec_core._errors import module_stack
from qspec_core._spec import Q_ANNOTATION_KEY, EdgeOrNode, QuantizationAnnotation, QuantizationSpecBase

__all__ = [
    "Quantizer",
    "annotate_input_qspec_map",
    "annotate_output_qspec",
    "get_module_name_filter",
    "is_valid_annotation",
]


class Quantizer(ABC):
    """Writes `QuantizationAnnotation`s into `node.meta`. A subclass may edit its graph: prepare owns it."""

    @property
    def has_configuration(self) -> bool:
        """Whether it asks for something to be quantized, so that matching nothing is an error."""
        return False

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Rewrite the graph into the form that `annotate` expects; the values it computes stay the same."""
        return model

    @abstractmethod
    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate the nodes of the graph, and return the module."""

    @abstractmethod
    def validate(self, model: GraphModule) -> None:
        """Raise if the annotated graph is not one that the backend can run."""

    def prepare_obs_or_fq_callback(  # not abstract: most quantizers do not edit the map
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, nn.Module]
    ) -> None:
        """Edit the map from points to observers before they are inserted. Points of one group hold one instance."""


def _annotation(node: Node) -> QuantizationAnnotation:
    annotation: QuantizationAnnotation = node.meta.setdefault(Q_ANNOTATION_KEY, QuantizationAnnotation())
    annotation._annotated = True
    return annotation


def annotate_input_qspec_map(node: Node, input_node: Node, qspec: QuantizationSpecBase | None) -> None:
    """Give the edge from `input_node` to `node` a spec."""
    _annotation(node).input_qspec_map[input_node] = qspec


def annotate_output_qspec(node: Node, qspec: QuantizationSpecBase | None) -> None:
    """Give the output of `node` a spec."""
    _annotation(node).output_qspec = qspec


def is_valid_annotation(annotation: QuantizationAnnotation | None) -> bool:
    """Whether an annotation has an entry: for an input edge (None means that it stays in float) or for the output."""
    return annotation is not None and (bool(annotation.input_qspec_map) or annotation.output_qspec is not None)


def get_module_name_filter(module_name: str) -> Callable[[Node], bool]:
    """A predicate: whether a node was traced in the module of this path or in a module inside it."""

    def is_inside(node: Node) -> bool:
        return any(path == module_name for path, _ in module_stack(node))

    return is_inside
