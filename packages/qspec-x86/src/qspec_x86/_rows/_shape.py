"""Shape family: operators that move integers as they move floats."""

from collections.abc import Callable

import torch
from torch._ops import OpOverload
from torch.fx import Node

from qspec_core.lowering import Lowering, lower_cat, lower_pad, lower_view
from qspec_core.patterns import Flow, Match, Operand, Reason, Row, activation, activations
from qspec_x86._lowering._options import Options
from qspec_x86._rows._checks import is_constant_pad

__all__ = ["ROWS"]

aten = torch.ops.aten


def _row(
    name: str,
    anchor: OpOverload,
    operand: Operand,
    lower: Callable[[Match, Lowering[Options]], Reason | None] = lower_view,
    checks: tuple[Callable[[Node], Reason | None], ...] = (),
) -> Row:
    return Row(name, anchor, (operand,), Flow.SHARES, lower, checks=checks)


_SELF = activation("self")
ROWS = (
    _row("cat", aten.cat.default, activations("tensors"), lower_cat),
    _row("pad", aten.pad.default, _SELF, lower_pad, (is_constant_pad,)),
    _row("flatten", aten.flatten.using_ints, _SELF),
    _row("unflatten", aten.unflatten.int, _SELF),
    _row("view", aten.view.default, _SELF),
    _row("reshape", aten.reshape.default, _SELF),
    _row("permute", aten.permute.default, _SELF),
    _row("transpose", aten.transpose.int, _SELF),
    _row("squeeze", aten.squeeze.default, _SELF),
    _row("squeeze.dim", aten.squeeze.dim, _SELF),
    _row("squeeze.dims", aten.squeeze.dims, _SELF),
    _row("unsqueeze", aten.unsqueeze.default, _SELF),
    _row("expand", aten.expand.default, _SELF),
    _row("slice", aten.slice.Tensor, _SELF),
    _row("select", aten.select.int, _SELF),
    _row("contiguous", aten.contiguous.default, _SELF),
    _row("clone", aten.clone.default, _SELF),
)
