"""The quantizer, under the name that ExecuTorch's has."""

from typing import Self

from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import GraphModule, Node

from qspec_core import QuantizationConfig, TableQuantizer
from qspec_core.graph import copy_graph_module
from qspec_core.patterns import Flow, Mode, Reason, ReasonCode
from qspec_xnnpack._config import fit
from qspec_xnnpack._dynamic import dynamic_form, linear_between_floats, separate_dynamic_convolutions
from qspec_xnnpack._lowering._forms import numbers_to_tensors, to_delegate_form
from qspec_xnnpack._rows import STARTING_TABLE, TABLE
from qspec_xnnpack._rows._embedding import EMBEDDING

__all__ = ["XNNPACKQuantizer"]

_ROUNDS = 4
"""Searches for linear layers between floats; transformers need one."""


class XNNPACKQuantizer(TableQuantizer):
    """Quantizer of the operators that XNNPACK's delegate executes in integers. Selection works as in `TableQuantizer`.

    Each `set_*` takes a `QuantizationConfig`, such as `get_symmetric_quantization_config()` returns, or None for float.

    Args:
        element_wise_starts: sums and products are quantized everywhere, those with a number too, as ExecuTorch's
            quantizer does. False quantizes only those whose operands are integers already, which keeps the residual
            streams of transformers in float.
        dynamic_linear: in a static configuration, linear layers that read float values, and whose results only float
            operators read, find the range of their input when the model runs and give float results. Static ranges of
            such layers are often far wider than most of their values.
        embeddings: store the tables of embeddings as int8, with a scale for each row, as `quantize` does. ExecuTorch's
            quantizer leaves them in float.
    """

    def __init__(
        self, *, element_wise_starts: bool = True, dynamic_linear: bool = False, embeddings: bool = False
    ) -> None:
        super().__init__(STARTING_TABLE if element_wise_starts else TABLE)
        self._embeddings = embeddings
        self._element_wise_starts = element_wise_starts
        self._dynamic_linear = dynamic_linear
        self._between_floats: frozenset[str] = frozenset()

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Expand recurrent layers, and bring the graph to the form that the delegate takes."""
        self.expand_recurrent_layers(model)
        to_delegate_form(model)
        if self._element_wise_starts:
            numbers_to_tensors(model)
        return model

    def config_of(self, anchor: Node) -> QuantizationConfig | Reason:
        """The configuration selected for a match; the dynamic one for a linear layer between float operators."""
        if anchor.target is EMBEDDING.anchor and not self._embeddings:
            return Reason(ReasonCode.EXCLUDED, "XNNPACKQuantizer(embeddings=False)")
        chosen = super().config_of(anchor)
        if isinstance(chosen, QuantizationConfig) and anchor.name in self._between_floats:
            return dynamic_form(chosen)
        return chosen

    def remark_on(self, anchor: Node) -> str:
        """Say of a linear layer between float operators that it is dynamic in a static model."""
        chosen = self.config_of(anchor) if anchor.name in self._between_floats else None
        is_dynamic = isinstance(chosen, QuantizationConfig) and chosen.mode is Mode.DYNAMIC
        return "dynamic, between float operators" if is_dynamic else ""

    def annotate(self, model: GraphModule) -> GraphModule:
        """Annotate every match that has a configuration.

        Cost: O(nodes + edges); with `dynamic_linear` up to five times that, and copies of the graph.
        """
        self._between_floats = frozenset()
        if self._dynamic_linear:
            self._between_floats = self._find_linear_between_floats(model)
        super().annotate(model)
        separate_dynamic_convolutions(model)
        return model

    def _find_linear_between_floats(self, model: GraphModule) -> frozenset[str]:
        """Names of the linear layers that become dynamic. A layer that does may leave others between floats."""
        starts = frozenset(row.anchor for row in self.table.rows if row.flow is Flow.STARTS)
        for _ in range(_ROUNDS):
            found = linear_between_floats(super().annotate(copy_graph_module(model)), starts)
            if not found:
                break
            self._between_floats |= found
        return self._between_floats

    def set_global(self, config: QuantizationConfig | None) -> Self:
        """Configure every match that no closer rule selects. Raises: SpecError: the kernels do not take it."""
        return super().set_global(fit(config))

    def set_module_name(self, name: str, config: QuantizationConfig | None) -> Self:
        """Configure the module of this path and all inside it. Raises: SpecError: the kernels do not take it."""
        return super().set_module_name(name, fit(config))

    def set_module_type(self, module_type: type | str, config: QuantizationConfig | None) -> Self:
        """Configure modules of this class and all inside them. Raises: SpecError: the kernels do not take it."""
        return super().set_module_type(module_type, fit(config))

    def set_operator_type(self, operator: OpOverload | OpOverloadPacket, config: QuantizationConfig | None) -> Self:
        """Configure the matches anchored at this operator. Raises: SpecError: the kernels do not take it."""
        return super().set_operator_type(operator, fit(config))
