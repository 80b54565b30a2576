"""The quantizer for Intel GPUs, with the PT2E names."""

from collections.abc import Callable
from typing import Self

from qspec_core import QuantizationConfig, SelectorError, TableQuantizer
from qspec_xpu._rows import TABLE

__all__ = ["XPUInductorQuantizer"]


class XPUInductorQuantizer(TableQuantizer):
    """Annotate the operators that run in int8 kernels of oneDNN on Intel GPUs."""

    def __init__(self) -> None:
        super().__init__(TABLE)

    def set_module_name_qconfig(self, module_name: str, quantization_config: QuantizationConfig | None) -> Self:
        """Configure the module of this path; the same as `set_module_name`."""
        return self.set_module_name(module_name, quantization_config)

    def set_module_type_qconfig(self, module_type: type, quantization_config: QuantizationConfig | None) -> Self:
        """Configure modules of this class; the same as `set_module_type`."""
        return self.set_module_type(module_type, quantization_config)

    def set_function_type_qconfig(
        self, function_type: Callable[..., object], quantization_config: QuantizationConfig | None
    ) -> Self:
        """Configure the operator that a function such as `torch.nn.functional.linear` calls.

        Raises: SelectorError: no row has the function's operator.
        """
        functions = TABLE.functions()
        operator = functions.get(function_type)
        if operator is None:
            raise SelectorError(
                f"no row of the XPU table has the operator of the function {function_type!r}",
                found=getattr(function_type, "__name__", repr(function_type)),
                expected=", ".join(sorted({str(packet).rpartition(".")[2] for packet in functions.values()})),
                remedy="name a function of torch with one of these names, or an operator with set_operator_type",
            )
        return self.set_operator_type(operator, quantization_config)

    def get_global_quantization_config(self) -> QuantizationConfig | None:
        """The global configuration; None if there is none."""
        return self._selection.global_config
