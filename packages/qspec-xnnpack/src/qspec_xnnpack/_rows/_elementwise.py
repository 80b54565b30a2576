"""Element-wise family. These rows join: an int8 sum that starts by itself would put residual streams into int8."""

import torch
from torch.fx import Node

from qspec_core.graph import argument
from qspec_core.patterns import DELEGATED, Flow, Mode, Reason, Row, activation
from qspec_xnnpack._rows._clamps import RELU

__all__ = ["ROWS"]

aten = torch.ops.aten
_OPERANDS = (activation("self"), activation("other"))
_STATIC = frozenset({Mode.STATIC})


def _two_tensors(node: Node) -> Reason | None:
    numbers = [name for name in ("self", "other") if not isinstance(argument(node, name), Node)]
    return Reason.unsupported(f"operand {numbers[0]} is a number") if numbers else None


def _alpha_is_one(node: Node) -> Reason | None:
    alpha = argument(node, "alpha")
    return None if alpha == 1 else Reason.unsupported(f"alpha={alpha}, and the kernel scales neither operand")


def _unit_scales(node: Node) -> Reason | None:
    scales = [argument(node, name) for name in ("scale", "input_scale")]
    if scales == [1, 1]:
        return None
    return Reason.unsupported(f"scale and input_scale are {scales}: the kernel knows alpha alone")


ADD = Row(
    name="add",
    anchor=aten.add.Tensor,
    operands=_OPERANDS,
    # A hardtanh after a sum is not fused by the partitioner, which then computes both in float.
    chains=((RELU,), ()),
    flow=Flow.JOINS,
    lower=DELEGATED,
    checks=(_two_tensors, _alpha_is_one),
)
SUB = Row(
    name="sub",
    anchor=aten.sub.Tensor,
    operands=_OPERANDS,
    flow=Flow.JOINS,
    lower=DELEGATED,
    checks=(_two_tensors, _alpha_is_one),
)
MUL = Row(
    name="mul",
    anchor=aten.mul.Tensor,
    operands=_OPERANDS,
    # Nor is any clamp after a product.
    flow=Flow.JOINS,
    lower=DELEGATED,
    checks=(_two_tensors,),
)
# Alone, a clamp has a scale of its own: with its input's, every level that it cuts off would be lost.
LONE_RELU = Row(
    name="relu",
    anchor=aten.relu.default,
    operands=(activation("self"),),
    flow=Flow.JOINS,
    lower=DELEGATED,
)
LONE_HARDTANH = Row(
    name="hardtanh",
    anchor=aten.hardtanh.default,
    operands=(activation("self"),),
    flow=Flow.JOINS,
    lower=DELEGATED,
)
# A clamp with one bound; the canonical form writes one with two as hardtanh.
LONE_CLAMP = Row(
    name="clamp",
    anchor=aten.clamp.default,
    operands=(activation("self"),),
    flow=Flow.JOINS,
    lower=DELEGATED,
)
ELU = Row(
    name="elu",
    anchor=aten.elu.default,
    operands=(activation("self"),),
    flow=Flow.JOINS,
    lower=DELEGATED,
    checks=(_unit_scales,),
)
ROWS = (ADD, SUB, MUL, LONE_RELU, LONE_HARDTANH, LONE_CLAMP, ELU)
