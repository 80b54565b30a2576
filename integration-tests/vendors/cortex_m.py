"""Cortex-M (CMSIS-NN), the pipeline with explicit layouts: int8 everywhere, int32 biases, a softmax of fixed scale."""

from dataclasses import replace
from functools import partial

import torch
from torch.fx import Node
from vendors.parts import ACTIVATION, BIAS, PER_CHANNEL, PER_TENSOR, aten, int32_bias, shares, starts

from qspec_core import FixedQParamsQuantizationSpec, QuantizationConfig, QuantizationSpec, QuantizationSpecBase
from qspec_core.graph import argument, tensor_value
from qspec_core.patterns import (
    DELEGATED,
    Flow,
    Outputs,
    PatternTable,
    PostOp,
    Reason,
    Row,
    activation,
    weight,
)

__all__ = ["CONFIG", "TABLE"]

_SOFTMAX = FixedQParamsQuantizationSpec(torch.int8, 1 / 256, -128, -128, 127, torch.per_tensor_affine)
_CLAMPS = tuple((PostOp(getattr(aten, name).default, name),) for name in ("relu", "relu6", "hardtanh", "clamp"))
_CHAINS = (*_CLAMPS, (PostOp(aten.hardsigmoid.default, "hardsigmoid"),), ())


def per_tensor(anchor: Node, spec: QuantizationSpec, target: str) -> QuantizationSpec:
    """Linear layers have one scale."""
    return PER_TENSOR


def softmax_output(anchor: Node, spec: QuantizationSpec, target: str) -> QuantizationSpecBase:
    """The kernel writes probabilities in steps of 1/256."""
    return _SOFTMAX


def same_shapes(node: Node, *, channels: bool) -> Reason | None:
    """Tensors of one shape; with `channels`, also one value for each channel."""
    a, b = (tensor_value(argument(node, name)) for name in ("self", "other"))
    if a is None or b is None:
        return Reason.unsupported("a number in place of a tensor")
    by_channel = channels and a.dim() == 4 and tuple(b.shape) == (1, a.shape[1], 1, 1)
    return None if a.shape == b.shape or by_channel else Reason.unsupported("shapes that are broadcast")


def plain_transpose(node: Node) -> Reason | None:
    """One group, no dilation, no output padding."""
    wanted = {"groups": 1, "dilation": [1, 1], "output_padding": [0, 0]}
    odd = [name for name, value in wanted.items() if argument(node, name) != value]
    return Reason.unsupported(f"{', '.join(odd)} of a transposed convolution") if odd else None


def last_dimension(node: Node) -> Reason | None:
    """A softmax over the last dimension."""
    value, dim = tensor_value(argument(node, "self")), argument(node, "dim")
    return None if value is not None and dim % value.dim() == value.dim() - 1 else Reason.unsupported("another dim")


def plain_average(node: Node) -> Reason | None:
    """The kernel divides by the number of elements."""
    return None if argument(node, "divisor_override") is None else Reason.unsupported("divisor_override")


_INPUT, _CHANNEL_BIAS = activation("input"), int32_bias(per_channel=True)
_CONV = (_INPUT, weight("weight", ch_axis=0), _CHANNEL_BIAS)
_TRANSPOSED = (_INPUT, weight("weight", ch_axis=1), _CHANNEL_BIAS)
_LINEAR = (_INPUT, weight("weight", ch_axis=0, adapt=per_tensor), int32_bias(per_channel=False))
_LAYERS = (
    Row("conv1d", aten.conv1d.default, _CONV, Flow.STARTS, DELEGATED, chains=_CHAINS),
    Row("conv2d", aten.conv2d.default, _CONV, Flow.STARTS, DELEGATED, chains=_CHAINS),
    Row(
        "conv_transpose2d",
        aten.conv_transpose2d.input,
        _TRANSPOSED,
        Flow.STARTS,
        DELEGATED,
        chains=_CHAINS,
        checks=(plain_transpose,),
    ),
    Row("linear", aten.linear.default, _LINEAR, Flow.STARTS, DELEGATED, chains=_CHAINS),
)
_broadcast = (partial(same_shapes, channels=True),)
_BINARY = (
    starts("add", aten.add.Tensor, "self", "other", chains=(*_CLAMPS, ()), checks=_broadcast),
    starts("sub", aten.sub.Tensor, "self", "other", chains=(*_CLAMPS, ()), checks=_broadcast),
    starts("mul", aten.mul.Tensor, "self", "other", checks=_broadcast),
    starts("div", aten.div.Tensor, "self", "other", checks=(partial(same_shapes, channels=False),)),
    starts("bmm", aten.bmm.default, "self", "mat2"),
)
_BY_LOOKUP = ("sigmoid", "tanh", "silu", "gelu", "hardswish", "log", "log2", "log10", "log1p", "sqrt", "rsqrt")
_UNARY = (
    *(starts(name, getattr(aten, name).default, "self") for name in _BY_LOOKUP),
    starts("softmax", aten.softmax.int, "self", checks=(last_dimension,), adapt_output=softmax_output),
)
_MOVES = ("clone", "contiguous", "permute", "t", "repeat", "expand", "flip", "amin", "amax", "pad", "unsqueeze", "view")
_SHARED = (
    shares("avg_pool2d", aten.avg_pool2d.default, checks=(plain_average,)),
    shares("max_pool2d", aten.max_pool2d.default, chains=(*_CLAMPS, ())),
    *(shares(name, getattr(aten, name).default) for name in (*_MOVES, "reshape", "pixel_shuffle", "pixel_unshuffle")),
    *(shares(name, getattr(aten, name).default) for name in ("relu", "relu6", "hardtanh", "clamp", "index_select")),
    shares("transpose", aten.transpose.int),
    shares("select", aten.select.int),
    shares("slice", aten.slice.Tensor),
    shares("unflatten", aten.unflatten.int),
    shares("flatten", aten.flatten.using_ints),
    *(shares(f"squeeze {name}", getattr(aten.squeeze, name)) for name in ("default", "dim", "dims")),
    shares("cat", aten.cat.default, "tensors"),
    shares("stack", aten.stack.default, "tensors"),
    *(
        replace(shares(name, getattr(aten, name).default), operands=(activation("self"), activation("other")))
        for name in ("minimum", "maximum")
    ),
)
TABLE = PatternTable(
    (*_LAYERS, *_BINARY, *_UNARY, *_SHARED),
    Outputs.ALWAYS,
    left_out={
        "split, chunk, unbind, max.dim, min.dim": "a row's output is one tensor",
        "index_put, index_copy, copy_": "a row writes a tensor of its own, not into one of its operands",
        "eq, ne, ge, gt, le, lt, where, cond, while_loop": "no float tensor in, or none out: nothing to quantize",
    },
)
CONFIG = QuantizationConfig(ACTIVATION, ACTIVATION, PER_CHANNEL, BIAS)
