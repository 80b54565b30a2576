"""Shape family: operators that move integers without arithmetic; input and output share scale and zero point."""

from collections.abc import Callable

import torch
from torch import Tensor
from torch._ops import OpOverload
from torch.fx import Node

from qspec_core.graph import argument
from qspec_core.patterns import DELEGATED, Flow, Operand, Reason, ReasonCode, Row, activation, activations
from qspec_xnnpack._rows._checks import shape_of, static_shape

__all__ = ["ROWS"]

aten = torch.ops.aten
Check = Callable[[Node], Reason | None]


def _distinct_tensors(node: Node) -> Reason | None:
    tensors = argument(node, "tensors")
    distinct = len(set(tensors))
    return (
        None
        if distinct == len(tensors) and distinct > 1
        else Reason.unsupported("it concatenates one tensor only, or one of them twice")
    )


def _unit_step(node: Node) -> Reason | None:
    step = argument(node, "step")
    return None if step == 1 else Reason.unsupported(f"step={step}")


def _trailing_dimension(node: Node) -> Reason | None:
    dim, shape = argument(node, "dim"), shape_of(argument(node, "self"))
    fits = dim == -1 or (shape is not None and dim == len(shape))
    return None if fits else Reason.unsupported(f"dim={dim} is not after the last one")


def _in_place(node: Node) -> Reason | None:
    """Decline a reshape of a permuted tensor: it decomposes into a copy, and the delegate copies in float only."""
    source = argument(node, "self")
    value = source.meta.get("val") if isinstance(source, Node) else None
    if isinstance(value, Tensor) and not value.is_contiguous():
        return Reason(
            ReasonCode.NO_INTEGER_KERNEL, "its input is permuted, and the delegate copies permuted tensors in float"
        )
    return None


def _shares(name: str, anchor: OpOverload, *checks: Check, operand: Operand | None = None) -> Row:
    """A row that passes integers on."""
    return Row(
        name=name,
        anchor=anchor,
        operands=(activation("self") if operand is None else operand,),
        flow=Flow.SHARES,
        lower=DELEGATED,
        checks=checks,
    )


ROWS = (
    _shares("cat", aten.cat.default, _distinct_tensors, operand=activations("tensors")),
    _shares("view", aten.view.default, static_shape),
    _shares("reshape", aten.reshape.default, static_shape, _in_place),
    _shares("flatten", aten.flatten.using_ints, static_shape, _in_place),
    _shares("unsqueeze", aten.unsqueeze.default, _trailing_dimension, static_shape),
    _shares("permute", aten.permute.default),
    _shares("transpose", aten.transpose.int),
    _shares("slice", aten.slice.Tensor, _unit_step, static_shape),
)
