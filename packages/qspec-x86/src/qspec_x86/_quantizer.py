"""The x86 quantizer, with the PT2E names."""

from collections.abc import Callable
from dataclasses import replace
from typing import Self

from qspec_core import QuantizationConfig, SelectorError, TableQuantizer
from qspec_core.patterns import Mode
from qspec_x86._rows import TABLE
from qspec_x86._target import resolve_target

__all__ = ["X86InductorQuantizer"]

_WEIGHT_ONLY = frozenset({Mode.WEIGHT_ONLY})
_FLOAT_TABLES = replace(
    TABLE, rows=tuple(row if row.activations else replace(row, modes=_WEIGHT_ONLY) for row in TABLE.rows)
)
"""The table in which lookups are quantized by a weight-only configuration alone."""


class X86InductorQuantizer(TableQuantizer):
    """Annotate the operators that run in int8 kernels of oneDNN.

    Args:
        target: class of the deployment CPU: "vnni", "any" or "native". For "any", scales of weights suit CPUs without
            VNNI, where two products must fit 16 bits. Weights quantized for "vnni" and lowered for "any" are quantized
            again, at some loss.
        embeddings: store the tables of embeddings as int8, with a scale for each row, in static and dynamic
            quantization too, as `quantize` does. The PT2E quantizer leaves them in float there.

    Raises: BackendError: there is no such target.
    """

    def __init__(self, *, target: str = "vnni", embeddings: bool = False) -> None:
        super().__init__(TABLE if embeddings else _FLOAT_TABLES, target=resolve_target(target))

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
                f"no row of the x86 table has the operator of the function {function_type!r}",
                found=getattr(function_type, "__name__", repr(function_type)),
                expected=", ".join(sorted({str(packet).rpartition(".")[2] for packet in functions.values()})),
                remedy="name a function of torch with one of these names, or an operator with set_operator_type",
            )
        return self.set_operator_type(operator, quantization_config)

    def get_global_quantization_config(self) -> QuantizationConfig | None:
        """The global configuration; None if there is none."""
        return self._selection.global_config
