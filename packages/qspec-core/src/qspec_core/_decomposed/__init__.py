"""The `quantized_decomposed` operators in plain torch, for versions of torch that do not define them.

Schemas and arithmetic are those of torch 2.13, so a saved program gives the same results wherever it is loaded.
"""

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library, register_autograd

from qspec_core._decomposed import _kernels as kernels

__all__ = ["OPERATORS", "define_quantized_decomposed"]

_NAMESPACE = "quantized_decomposed"
_libraries: list[Library] = []  # operators are removed when their library object is freed


def _fake_of(position: int) -> Callable[..., Tensor]:
    """Fake kernel whose output has the shape of the input, and the dtype of the argument at `position` after it."""

    def fake(input: Tensor, *arguments: Any) -> Tensor:  # Any: the operator's own arguments
        return torch.empty_like(input, dtype=arguments[position])

    return fake


def _fake_dequantized(input: Tensor, *arguments: object, out_dtype: torch.dtype | None = None) -> Tensor:
    return torch.empty_like(input, dtype=torch.float32 if out_dtype is None else out_dtype)


def _fake_unchanged(input: Tensor, *arguments: object) -> Tensor:
    return torch.empty_like(input)


def _empty_qparams(input: Tensor, shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    return input.new_empty(shape, dtype=torch.float64), input.new_empty(shape, dtype=torch.int64)


def _fake_qparams(input: Tensor, *arguments: object) -> tuple[Tensor, Tensor]:
    return _empty_qparams(input, (1,))


def _fake_qparams_per_token(input: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    kind = torch.float32 if input.dtype == torch.float16 else input.dtype
    shape = (*input.shape[:-1], 1)
    return input.new_empty(shape, dtype=kind), input.new_empty(shape, dtype=kind)


def _fake_qparams_per_token_asymmetric(input: Tensor, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    return _empty_qparams(input, (*input.shape[:-1], 1))


class _Operator(NamedTuple):
    """An operator to define.

    Args:
        schema: arguments and returns.
        kernel: the function that computes it.
        fake: the function that gives shape and dtype of its outputs.
    """

    schema: str
    kernel: Callable[..., Any]
    fake: Callable[..., Any]


_RANGE = "int quant_min, int quant_max, ScalarType dtype"
_TENSORS = "Tensor scale, Tensor zero_point"
_CHANNELS = "Tensor input, Tensor scales, Tensor zero_points"
_NO_ZEROS = "Tensor input, Tensor scales, Tensor? zero_points"
_OUT = "*, ScalarType? out_dtype=None"
_CHOICE = "(Tensor input, int quant_min, int quant_max, float eps, ScalarType dtype) -> (Tensor, Tensor)"

OPERATORS: Mapping[str, _Operator] = {
    "quantize_per_tensor": _Operator(
        f"(Tensor input, float scale, int zero_point, {_RANGE}) -> Tensor", kernels.quantize_per_tensor, _fake_of(4)
    ),
    "quantize_per_tensor.tensor": _Operator(
        f"(Tensor input, {_TENSORS}, {_RANGE}) -> Tensor", kernels.quantize_per_tensor_tensor, _fake_of(4)
    ),
    "quantize_per_tensor.tensor2": _Operator(
        f"(Tensor input, {_TENSORS}, Tensor quant_min, Tensor quant_max, ScalarType dtype) -> Tensor",
        kernels.quantize_per_tensor_tensor2,
        _fake_of(4),
    ),
    "dequantize_per_tensor": _Operator(
        f"(Tensor input, float scale, int zero_point, {_RANGE}, {_OUT}) -> Tensor",
        kernels.dequantize_per_tensor,
        _fake_dequantized,
    ),
    "dequantize_per_tensor.tensor": _Operator(
        f"(Tensor input, {_TENSORS}, {_RANGE}, {_OUT}) -> Tensor",
        kernels.dequantize_per_tensor_tensor,
        _fake_dequantized,
    ),
    "dequantize_per_tensor.tensor2": _Operator(
        f"(Tensor input, {_TENSORS}, Tensor quant_min, Tensor quant_max, ScalarType dtype, {_OUT}) -> Tensor",
        kernels.dequantize_per_tensor_tensor,
        _fake_dequantized,
    ),
    "choose_qparams.tensor": _Operator(_CHOICE, kernels.choose_qparams, _fake_qparams),
    "choose_qparams_symmetric.tensor": _Operator(_CHOICE, kernels.choose_qparams_symmetric, _fake_qparams),
    "quantize_per_channel": _Operator(
        f"({_CHANNELS}, int axis, {_RANGE}) -> Tensor", kernels.quantize_per_channel, _fake_of(5)
    ),
    "dequantize_per_channel": _Operator(
        f"({_NO_ZEROS}, int axis, {_RANGE}, {_OUT}) -> Tensor", kernels.dequantize_per_channel, _fake_dequantized
    ),
    "choose_qparams_per_token": _Operator(
        "(Tensor input, ScalarType dtype) -> (Tensor, Tensor)",
        kernels.choose_qparams_per_token,
        _fake_qparams_per_token,
    ),
    "choose_qparams_per_token_asymmetric": _Operator(
        "(Tensor input, ScalarType dtype) -> (Tensor, Tensor)",
        kernels.choose_qparams_per_token_asymmetric,
        _fake_qparams_per_token_asymmetric,
    ),
    "quantize_per_token": _Operator(f"({_CHANNELS}, {_RANGE}) -> Tensor", kernels.quantize_per_token, _fake_of(4)),
    "dequantize_per_token": _Operator(
        f"({_CHANNELS}, {_RANGE}, ScalarType output_dtype) -> Tensor", kernels.dequantize_per_token, _fake_of(5)
    ),
    "quantize_per_channel_group": _Operator(
        f"({_CHANNELS}, {_RANGE}, int group_size) -> Tensor", kernels.quantize_per_channel_group, _fake_of(4)
    ),
    "dequantize_per_channel_group": _Operator(
        f"({_NO_ZEROS}, {_RANGE}, int group_size, ScalarType output_dtype) -> Tensor",
        kernels.dequantize_per_channel_group,
        _fake_of(6),
    ),
    "fake_quant_per_channel": _Operator(
        f"({_CHANNELS}, int axis, int quant_min, int quant_max) -> Tensor",
        kernels.fake_quant_per_channel,
        _fake_unchanged,
    ),
    "convert_element_type.no_fuse": _Operator(
        "(Tensor input, ScalarType dtype) -> Tensor", kernels.convert_element_type, _fake_of(0)
    ),
}
"""Operators by name and overload."""


def define_quantized_decomposed() -> None:
    """Define the operators that are not defined yet; another package may have defined some."""
    make: Any = Library  # torch leaves it untyped
    library = make(_NAMESPACE, "FRAGMENT")
    _libraries.append(library)
    namespace = getattr(torch.ops, _NAMESPACE)
    for name, operator in OPERATORS.items():
        packet, _, overload = name.partition(".")
        if hasattr(getattr(namespace, packet, None), overload or "default"):
            continue
        library.define(name + operator.schema)
        library.impl(name, operator.kernel, "CompositeExplicitAutograd")
        library.impl(name, operator.fake, "Meta")
        if packet == "fake_quant_per_channel":
            register_autograd(
                f"{_NAMESPACE}::{name}", kernels.masked_gradient, setup_context=kernels.keep_mask, lib=library
            )
