"""Shape family: operators that move integers as they move floats."""

import torch
from torch._ops import OpOverload

from qspec_core.lowering import lower_cat, lower_pad, lower_view
from qspec_core.patterns import Flow, Row, activation, activations
from qspec_xpu._rows._checks import is_constant_pad

__all__ = ["ROWS"]

aten = torch.ops.aten
_MOVES: tuple[tuple[str, OpOverload], ...] = (
    ("flatten", aten.flatten.using_ints),
    ("unflatten", aten.unflatten.int),
    ("view", aten.view.default),
    ("reshape", aten.reshape.default),
    ("permute", aten.permute.default),
    ("transpose", aten.transpose.int),
    ("squeeze", aten.squeeze.default),
    ("squeeze.dim", aten.squeeze.dim),
    ("squeeze.dims", aten.squeeze.dims),
    ("unsqueeze", aten.unsqueeze.default),
    ("expand", aten.expand.default),
    ("slice", aten.slice.Tensor),
    ("select", aten.select.int),
    ("contiguous", aten.contiguous.default),
    ("clone", aten.clone.default),
)
ROWS = (
    Row("cat", aten.cat.default, (activations("tensors"),), Flow.SHARES, lower_cat),
    Row("pad", aten.pad.default, (activation("self"),), Flow.SHARES, lower_pad, checks=(is_constant_pad,)),
    *(Row(name, anchor, (activation("self"),), Flow.SHARES, lower_view) for name, anchor in _MOVES),
)
