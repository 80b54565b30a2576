"""Element-wise family. These rows join integers: a sum that started them would quantize residual streams to int8."""

import torch
from torch.fx import Node

from qspec_core.graph import argument
from qspec_core.patterns import DELEGATED, Flow, Reason, Row, activation
from qspec_xnnpack._rows._checks import finite_operands
from qspec_xnnpack._rows._post_ops import RELU

__all__ = ["ROWS"]

aten = torch.ops.aten
_OPERANDS = (activation("self"), activation("other"))


def _two_tensors(node: Node) -> Reason | None:
    numbers = [name for name in ("self", "other") if not isinstance(argument(node, name), Node)]
    return Reason.unsupported(f"operand {numbers[0]} is a number") if numbers else None


def _alpha_is_one(node: Node) -> Reason | None:
    alpha = argument(node, "alpha")
    return None if alpha == 1 else Reason.unsupported(f"alpha={alpha}; the kernel scales neither operand")


def _unit_scales(node: Node) -> Reason | None:
    scales = [argument(node, name) for name in ("scale", "input_scale")]
    if argument(node, "alpha") <= 0:
        return Reason.unsupported(f"alpha={argument(node, 'alpha')}: the kernel takes a positive alpha")
    if scales == [1, 1]:
        return None
    return Reason.unsupported(f"scale and input_scale are {scales}: the kernel takes alpha only")


ADD = Row(
    name="add",
    anchor=aten.add.Tensor,
    operands=_OPERANDS,
    # The partitioner does not fuse a hardtanh after a sum: the delegate would compute both in float.
    chains=((RELU,), ()),
    flow=Flow.JOINS,
    lower=DELEGATED,
    checks=(_two_tensors, _alpha_is_one, finite_operands),
)
SUB = Row(
    name="sub",
    anchor=aten.sub.Tensor,
    operands=_OPERANDS,
    flow=Flow.JOINS,
    lower=DELEGATED,
    checks=(_two_tensors, _alpha_is_one, finite_operands),
)
# No chains: the delegate fuses no clamp after a product.
MUL = Row(
    name="mul",
    anchor=aten.mul.Tensor,
    operands=_OPERANDS,
    flow=Flow.JOINS,
    lower=DELEGATED,
    checks=(_two_tensors, finite_operands),
)
# A clamp that is not fused gets its own scale: with the scale of its input, the levels that it cuts off would be lost.
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
# A clamp with one bound. The canonical form writes a clamp with two bounds as hardtanh.
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
