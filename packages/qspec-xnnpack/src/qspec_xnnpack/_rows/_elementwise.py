"""Element-wise family. These rows join: an int8 sum that starts by itself would put residual streams into int8."""

import torch
from torch._ops import OpOverload
from torch.fx import Node

from qspec_core.patterns import DELEGATED, Flow, Mode, PostOp, Reason, Row, activation, argument
from qspec_xnnpack._rows._checks import refused
from qspec_xnnpack._rows._clamps import RELU

__all__ = ["ROWS"]

aten = torch.ops.aten


def _two_tensors(node: Node) -> Reason | None:
    for name in ("self", "other"):
        if not isinstance(argument(node, name), Node):
            return refused(f"operand {name} is a number")
    return None


def _alpha_is_one(node: Node) -> Reason | None:
    alpha = argument(node, "alpha")
    return None if alpha == 1 else refused(f"alpha={alpha}: the kernel multiplies neither operand")


def _binary(name: str, anchor: OpOverload, chains: tuple[tuple[PostOp, ...], ...], *checks: object) -> Row:
    return Row(
        name=name,
        anchor=anchor,
        operands=(activation("self"), activation("other")),
        chains=chains,
        flow=Flow.JOINS,
        modes=frozenset({Mode.STATIC}),
        lower=DELEGATED,
        checks=(_two_tensors, *checks),
    )
