"""The `quantized_decomposed` operators, which converted graphs use and exporters and runtimes read."""

import torch

from qspec_core._decomposed import define_quantized_decomposed
from qspec_core._torch import OpOverload, load_quantized_decomposed

__all__ = [
    "CHOOSE_QPARAMS",
    "CHOOSE_QPARAMS_PER_TOKEN",
    "CHOOSE_QPARAMS_PER_TOKEN_ASYMMETRIC",
    "CHOOSE_QPARAMS_SYMMETRIC",
    "CONVERT_ELEMENT_TYPE",
    "DEQUANTIZE",
    "DEQUANTIZE_DYNAMIC",
    "DEQUANTIZE_PER_CHANNEL",
    "DEQUANTIZE_PER_GROUP",
    "DEQUANTIZE_PER_TOKEN",
    "QUANTIZE",
    "QUANTIZE_DYNAMIC",
    "QUANTIZE_PER_CHANNEL",
    "QUANTIZE_PER_GROUP",
    "QUANTIZE_PER_TOKEN",
    "is_dequantize",
    "is_quantize",
]

if not load_quantized_decomposed():
    define_quantized_decomposed()
_namespace = torch.ops.quantized_decomposed

QUANTIZE: OpOverload = _namespace.quantize_per_tensor.default
QUANTIZE_DYNAMIC: OpOverload = _namespace.quantize_per_tensor.tensor
QUANTIZE_PER_CHANNEL: OpOverload = _namespace.quantize_per_channel.default
DEQUANTIZE: OpOverload = _namespace.dequantize_per_tensor.default
DEQUANTIZE_DYNAMIC: OpOverload = _namespace.dequantize_per_tensor.tensor
DEQUANTIZE_PER_CHANNEL: OpOverload = _namespace.dequantize_per_channel.default
CHOOSE_QPARAMS: OpOverload = _namespace.choose_qparams.tensor
QUANTIZE_PER_GROUP: OpOverload = _namespace.quantize_per_channel_group.default
QUANTIZE_PER_TOKEN: OpOverload = _namespace.quantize_per_token.default
DEQUANTIZE_PER_GROUP: OpOverload = _namespace.dequantize_per_channel_group.default
DEQUANTIZE_PER_TOKEN: OpOverload = _namespace.dequantize_per_token.default
CHOOSE_QPARAMS_PER_TOKEN: OpOverload = _namespace.choose_qparams_per_token.default
CHOOSE_QPARAMS_PER_TOKEN_ASYMMETRIC: OpOverload = _namespace.choose_qparams_per_token_asymmetric.default
CHOOSE_QPARAMS_SYMMETRIC: OpOverload = _namespace.choose_qparams_symmetric.tensor
CONVERT_ELEMENT_TYPE: OpOverload = _namespace.convert_element_type.no_fuse

_QUANTIZES = frozenset({QUANTIZE, QUANTIZE_DYNAMIC, QUANTIZE_PER_CHANNEL, QUANTIZE_PER_GROUP, QUANTIZE_PER_TOKEN})
_DEQUANTIZES = frozenset(
    {DEQUANTIZE, DEQUANTIZE_DYNAMIC, DEQUANTIZE_PER_CHANNEL, DEQUANTIZE_PER_GROUP, DEQUANTIZE_PER_TOKEN}
)


def is_quantize(node: object) -> bool:
    """Whether a node quantizes a float tensor to integers."""
    return isinstance(node, torch.fx.Node) and node.op == "call_function" and node.target in _QUANTIZES


def is_dequantize(node: object) -> bool:
    """Whether a node dequantizes integers to a float tensor."""
    return isinstance(node, torch.fx.Node) and node.op == "call_function" and node.target in _DEQUANTIZES
