"""The quantizer under the names that users know."""

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Self

import torch
from torch import nn
from torch._ops import OpOverload

from qspec_core import QuantizationConfig, SelectorError, TableQuantizer
from qspec_x86._rows import TABLE
from qspec_x86._target import resolve_target

__all__ = ["X86InductorQuantizer"]

aten = torch.ops.aten

_OPERATORS: Mapping[Callable[..., object], tuple[OpOverload, ...]] = MappingProxyType(
    {
        nn.functional.conv1d: (aten.conv1d.default,),
        nn.functional.conv2d: (aten.conv2d.default,),
        nn.functional.conv3d: (aten.conv3d.default,),
        nn.functional.linear: (aten.linear.default,),
        nn.functional.max_pool2d: (aten.max_pool2d.default,),
        torch.cat: (aten.cat.default,),
        torch.flatten: (aten.flatten.using_ints,),
    }
)
"""Canonical operators of the functions that the field's quantizer takes and the table has rows for."""


class X86InductorQuantizer(TableQuantizer):
    """Annotates what runs in int8 kernels of oneDNN.

    Args:
        target: class of the deployment CPU: "vnni", "any" or "native". For "any", scales of weights suit CPUs without
            VNNI, where two products must fit 16 bits. Weights quantized for "vnni" and lowered for "any" are quantized
            again, at some loss.

    Raises: BackendError: there is no such target.
    """

    def __init__(self, *, target: str = "vnni") -> None:
        super().__init__(TABLE, target=resolve_target(target))

    def set_module_name_qconfig(self, module_name: str, quantization_config: QuantizationConfig | None) -> Self:
        """Configure the module of this path; the same as `set_module_name`."""
        return self.set_module_name(module_name, quantization_config)

    def set_module_type_qconfig(self, module_type: type, quantization_config: QuantizationConfig | None) -> Self:
        """Configure modules of this class; the same as `set_module_type`."""
        return self.set_module_type(module_type, quantization_config)

    def set_function_type_qconfig(
        self, function_type: Callable[..., object], quantization_config: QuantizationConfig | None
    ) -> Self:
        """Configure the operators that a function such as `torch.nn.functional.linear` calls.

        Raises: SelectorError: no row starts from the function's operator.
        """
        operators = _OPERATORS.get(function_type)
        if operators is None:
            known = ", ".join(function.__name__ for function in _OPERATORS)
            raise SelectorError(
                f"no row of the x86 table starts from the function {function_type!r}",
                found=getattr(function_type, "__name__", repr(function_type)),
                expected=known,
                remedy="name one of these functions, or an operator with set_operator_type",
            )
        for operator in operators:
            self.set_operator_type(operator, quantization_config)
        return self

    def get_global_quantization_config(self) -> QuantizationConfig | None:
        """The global configuration; None if there is none."""
        return self._selection.global_config
