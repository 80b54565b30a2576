"""The quantizer, under the name that ExecuTorch's has."""

from typing import Self

from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import GraphModule

from qspec_core import QuantizationConfig, TableQuantizer
from qspec_xnnpack._config import fit
from qspec_xnnpack._lowering._forms import numbers_to_tensors, to_delegate_form
from qspec_xnnpack._rows import STARTING_TABLE, TABLE

__all__ = ["XNNPACKQuantizer"]


class XNNPACKQuantizer(TableQuantizer):
    """Quantizer of the operators that XNNPACK's delegate executes in integers. Selection works as in `TableQuantizer`.

    Each `set_*` takes a `QuantizationConfig`, such as `get_symmetric_quantization_config()` returns, or None for float.

    Args:
        element_wise_starts: sums and products are quantized everywhere, those with a number too, as ExecuTorch's
            quantizer does. False quantizes only those whose operands are integers already, which keeps the residual
            streams of transformers in float.
    """

    def __init__(self, *, element_wise_starts: bool = True) -> None:
        super().__init__(STARTING_TABLE if element_wise_starts else TABLE)
        self._element_wise_starts = element_wise_starts

    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        """Bring the graph to the form that the delegate takes."""
        to_delegate_form(model)
        if self._element_wise_starts:
            numbers_to_tensors(model)
        return model

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
