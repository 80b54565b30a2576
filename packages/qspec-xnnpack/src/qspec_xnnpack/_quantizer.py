"""The quantizer under its usual name."""

from typing import Self

from torch._ops import OpOverload, OpOverloadPacket
from torch.fx import GraphModule

from qspec_core import QuantizationConfig, TableQuantizer
from qspec_core.patterns import Mode
from qspec_xnnpack._config import fit, get_symmetric_quantization_config
from qspec_xnnpack._forms import numbers_to_tensors, to_delegate_form
from qspec_xnnpack._rows import STARTING_TABLE, TABLE

__all__ = ["XNNPACKQuantizer", "default_quantizer"]


class XNNPACKQuantizer(TableQuantizer):
    """Quantizes what XNNPACK's delegate executes in integers. Selection is that of `TableQuantizer`.

    Each `set_*` takes a `QuantizationConfig`, such as `get_symmetric_quantization_config()` returns, or None for float.

    Args:
        element_wise_starts: sums and products are quantized wherever they are, those with a number too, as users of
            ExecuTorch's quantizer know it; False quantizes those whose operands are integers already, which spares the
            residual streams of transformers.
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


def default_quantizer(*, mode: Mode, target: str) -> XNNPACKQuantizer:
    """What `quantize(backend="xnnpack")` uses: int8 affine activations, int8 weights with a scale for each channel, and
    sums and products that only join integers.

    Args:
        mode: when activations are quantized.
        target: class of the deployment device; there is one.
    """
    config = get_symmetric_quantization_config(is_per_channel=True, is_dynamic=mode is Mode.DYNAMIC)
    return XNNPACKQuantizer(element_wise_starts=False).set_global(config)
