"""Rows and their matches: one operator pattern as data, read by annotation, lowering, tests and docs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch.fx import Node

from qspec_core._torch import OpOverload, OpOverloadPacket, schema_of
from qspec_core.graph import argument, argument_names
from qspec_core.patterns._flow import Flow, Mode, Outputs
from qspec_core.patterns._operands import Adapt, Check, Operand, PostOp, PreOp, Role
from qspec_core.patterns._reasons import Note, Reason

__all__ = ["DELEGATED", "Delegated", "Link", "Match", "PatternTable", "Row"]


@dataclass(frozen=True)
class Delegated:
    """Lowering of a row whose device takes the quantized pattern as it is, through a partitioner."""


DELEGATED = Delegated()

Lower = Callable[["Match", Any], Reason | Note | None]  # the second is a qspec_core.lowering.Lowering, a layer above


@dataclass(frozen=True)
class Row:
    """One operator pattern of a device.

    Args:
        name: unique in its table; coverage, docs and tests show it.
        anchor: canonical operator overload that the pattern starts from.
        operands: the anchor's tensor operands, by role.
        flow: whether the row starts, joins or shares integers.
        lower: rewrites a match in the converted graph. It returns None, a `Note` for the backend's report, or the
            `Reason` why it cannot. Or `DELEGATED`.
        chains: whole chains of post-ops that may follow, longest first; `()` is the anchor alone.
        modes: when it may quantize activations.
        checks: each gives the reason why a call of the anchor cannot run in the kernel, or None.
        not_in_onnx: why ONNX cannot express the converted row; empty if it can. `nox -s onnx` tests every other row.
        adapt_output: `(anchor, spec, target) -> spec`, called with the configured spec of outputs if the device always
            quantizes them: a kernel may fix the scale of its output, as that of a softmax does.
    """

    name: str
    anchor: OpOverload
    operands: tuple[Operand, ...]
    flow: Flow
    lower: Lower | Delegated
    chains: tuple[tuple[PostOp, ...], ...] = field(default=((),), kw_only=True)
    modes: frozenset[Mode] = field(default=frozenset({Mode.STATIC}), kw_only=True)
    checks: tuple[Check, ...] = field(default=(), kw_only=True)
    not_in_onnx: str = field(default="", kw_only=True)
    adapt_output: Adapt | None = field(default=None, kw_only=True)

    @property
    def activations(self) -> tuple[Operand, ...]:
        """Operands with an activation role."""
        return tuple(o for o in self.operands if o.role in (Role.ACTIVATION, Role.ACTIVATIONS))

    @property
    def has_weight(self) -> bool:
        """Whether the row has a weight: it is a layer in a coverage report."""
        return any(operand.role is Role.WEIGHT for operand in self.operands)


@dataclass(frozen=True)
class Link:
    """One post-op of a match.

    Args:
        post_op: the entry of the row's chain.
        previous: the node whose value it takes.
        node: the node that computes it.
    """

    post_op: PostOp
    previous: Node
    node: Node

    @property
    def other(self) -> Any:  # an operand can be any of fx's argument types
        """Second operand of a binary post-op, read from the graph as it is now; None for a unary one."""
        if self.post_op.other is None:
            return None
        first, second = (argument(self.node, name) for name in argument_names(self.post_op.target)[:2])
        return second if first is self.previous else first


@dataclass(frozen=True)
class Match:
    """A row found at an anchor. Operands are read on demand, because lowering replaces the nodes that produce them.

    Args:
        row: the row.
        anchor: the node that calls the row's anchor.
        links: the post-ops found after it, in order.
        absorbed: for each operand that takes in an operator before it, that operator's node.
    """

    row: Row
    anchor: Node
    links: tuple[Link, ...]
    absorbed: Mapping[str, tuple[PreOp, Node]]

    @property
    def tail(self) -> Node:
        """Node that holds the match's result."""
        return self.links[-1].node if self.links else self.anchor

    @property
    def nodes(self) -> tuple[Node, ...]:
        """All nodes that the match claims: what it absorbs, the anchor, its post-ops."""
        return (*(node for _, node in self.absorbed.values()), self.anchor, *(link.node for link in self.links))

    @property
    def label(self) -> str:
        """The row's name with the chain found: `conv2d + add + relu`."""
        return " + ".join((self.row.name, *(link.post_op.kernel for link in self.links)))

    def consumer(self, operand: Operand) -> Node:
        """Node that reads the operand: the anchor, or the operator that the kernel absorbs before it."""
        return self.absorbed[operand.name][1] if operand.name in self.absorbed else self.anchor

    def operand(self, name: str) -> Any:  # as in Link.other
        """Value of an operand in the graph as it is now; before the operator that the kernel absorbs, if any."""
        if name in self.absorbed:
            pre_op, node = self.absorbed[name]
            return argument(node, pre_op.operand)
        return argument(self.anchor, name)

    def inputs(self, *roles: Role) -> tuple[tuple[Operand, Node], ...]:
        """Nodes of the operands of these roles (all roles if none is given), with the operand, in schema order.

        A list operand gives one pair for each tensor; an operand that is not a node gives none.
        """
        pairs = []
        for operand in self.row.operands:
            if roles and operand.role not in roles:
                continue
            value = self.operand(operand.name)
            values = value if isinstance(value, list | tuple) else (value,)
            pairs += [(operand, item) for item in values if isinstance(item, Node)]
        return tuple(pairs)


@dataclass(frozen=True)
class PatternTable:
    """All rows of one device, and what is true of the device as a whole.

    Args:
        rows: in the order in which they may claim nodes.
        outputs: whether outputs are quantized on demand or always.
        float_only: operators that the device has no integer kernel for, each with why; coverage quotes it.
        left_out: forms of quantization that other tools have for the device and no row has, each with why; the
            backend's page quotes it.
    """

    rows: tuple[Row, ...]
    outputs: Outputs
    float_only: Mapping[OpOverload, str] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def functions(self) -> Mapping[Callable[..., object], OpOverloadPacket]:
        """Functions and methods of torch that call a row's anchor, such as `torch.nn.functional.conv2d`.

        They have the operator's name in torch. Each comes with the operator, in all its overloads.
        """
        found: dict[Callable[..., object], OpOverloadPacket] = {}
        for row in self.rows:
            name = schema_of(row.anchor).name.rpartition("::")[2]
            for place in (torch.nn.functional, torch, torch.Tensor):
                function = getattr(place, name, None)
                if callable(function):
                    found[function] = row.anchor.overloadpacket
        return found
