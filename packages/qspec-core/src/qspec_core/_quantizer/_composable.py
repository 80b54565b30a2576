"""Several quantizers on one model, with a policy for conflicts."""

from collections.abc import Sequence
from enum import Enum

from torch import nn
from torch.fx import GraphModule, Node

from qspec_core._errors import AnnotationError, SpecError
from qspec_core._quantizer._base import Quantizer
from qspec_core._spec import Q_ANNOTATION_KEY, EdgeOrNode, QuantizationAnnotation

__all__ = ["ComposableQuantizer", "OnConflict"]


class OnConflict(Enum):
    """The policy for a later quantizer that changes an annotation of an earlier one."""

    ERROR = "error"
    KEEP_FIRST = "keep first"
    OVERRIDE = "override"


class ComposableQuantizer(Quantizer):
    """Applies quantizers in order: every step of each, validation and the callback included.

    Args:
        quantizers: in the order in which they annotate.
        on_conflict: the policy for a later one that changes or removes an annotation of an earlier one.
    Raises: SpecError: no quantizer is given.
    """

    def __init__(self, quantizers: Sequence[Quantizer], *, on_conflict: OnConflict | str = OnConflict.ERROR) -> None:
        if not quantizers:
            raise SpecError(
                "ComposableQuantizer was given no quantizer",
                found="quantizers=[]",
                expected="one quantizer or more",
                remedy="list the quantizers in the order in which they may annotate",
            )
        self.quantizers = tuple(quantizers)
        self.on_conflict = OnConflict(on_conflict)

    @property
    def has_configuration(self) -> bool:
        """Whether some quantizer asks for quantization."""
        return any(quantizer.has_configuration for quantizer in self.quantizers)

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Let each quantizer rewrite the graph, in order."""
        for quantizer in self.quantizers:
            model = quantizer.transform_for_annotation(model)
        return model

    def annotate(self, model: GraphModule) -> GraphModule:
        """Let each quantizer annotate, in order, and apply the policy on conflicts.

        Raises: AnnotationError: the policy is ERROR and a quantizer changed an annotation of an earlier one.
        Cost: O(quantizers * nodes) plus the quantizers' own work.
        """
        for quantizer in self.quantizers:
            before = {node: _copy(node) for node in model.graph.nodes if Q_ANNOTATION_KEY in node.meta}
            quantizer.annotate(model)  # in place; some return nothing
            for node, annotation in before.items():
                if self.on_conflict is not OnConflict.OVERRIDE and _copy(node) != annotation:
                    self._settle(node, annotation, quantizer)
        return model

    def _settle(self, node: Node, annotation: QuantizationAnnotation | None, quantizer: Quantizer) -> None:
        if self.on_conflict is OnConflict.KEEP_FIRST:
            node.meta[Q_ANNOTATION_KEY] = annotation
            return
        raise AnnotationError(
            f"{type(quantizer).__name__} changes an annotation of an earlier quantizer",
            where=node,
            found=node.meta.get(Q_ANNOTATION_KEY),
            expected=annotation,
            remedy="exclude the node from one of the two, or set on_conflict to 'keep first' or 'override'",
        )

    def validate(self, model: GraphModule) -> None:
        """Let each quantizer validate."""
        for quantizer in self.quantizers:
            quantizer.validate(model)

    def prepare_obs_or_fq_callback(
        self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[EdgeOrNode, nn.Module]
    ) -> None:
        """Let each quantizer edit the map, in order."""
        for quantizer in self.quantizers:
            quantizer.prepare_obs_or_fq_callback(model, edge_or_node_to_obs_or_fq)


def _copy(node: Node) -> QuantizationAnnotation | None:
    """A copy of the annotation, which later changes to its map do not reach."""
    found = node.meta.get(Q_ANNOTATION_KEY)
    if found is None:
        return None
    return QuantizationAnnotation(
        dict(found.input_qspec_map), found.output_qspec, getattr(found, "allow_implicit_sharing", True), _annotated=True
    )
