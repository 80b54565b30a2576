"""Operands and the operators that a kernel takes in before and after its anchor."""

from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from torch.fx import Node

from qspec_core._spec import QuantizationSpec, QuantizationSpecBase
from qspec_core._torch import OpOverload
from qspec_core.patterns._flow import Mode
from qspec_core.patterns._reasons import Reason

__all__ = [
    "Check",
    "Operand",
    "OtherRole",
    "PostOp",
    "PreOp",
    "Role",
    "activation",
    "activations",
    "bias",
    "constant",
    "weight",
]


class Role(Enum):
    """The role of an operand in the kernel."""

    ACTIVATION = "activation"
    ACTIVATIONS = "activations"  # a list of tensors, as cat takes
    WEIGHT = "weight"
    BIAS = "bias"
    CONSTANT = "constant"  # a float constant that the kernel takes as it is: a slope, a norm's scale


class OtherRole(Enum):
    """The form of the second operand of a binary post-op."""

    QUANTIZED = "quantized"
    FLOAT = "float"


Check = Callable[[Node], Reason | None]
Adapt = Callable[[Node, QuantizationSpec, str], QuantizationSpecBase]
Refusal = Callable[[Node, QuantizationSpec], Reason | None]


@dataclass(frozen=True)
class PreOp:
    """An operator before the anchor that the kernel absorbs, such as a zero pad. The quantized edge moves before it.

    Args:
        target: canonical overload.
        operand: schema name of its data input.
        check: reason why this call cannot be absorbed, or None.
        modes: modes in which the kernel absorbs it; in other modes the row does not match after it. None for all modes.
    """

    target: OpOverload
    operand: str = "self"
    check: Check | None = None
    modes: frozenset[Mode] | None = None

    def absorbs_in(self, mode: Mode) -> bool:
        """Whether the kernel absorbs it in this mode."""
        return self.modes is None or mode in self.modes


@dataclass(frozen=True)
class Operand:
    """One operand of the anchor.

    Args:
        name: argument name in the operator's schema.
        role: its role in the kernel.
        ch_axis: dimension of a weight's output channels.
        absorbs: operators before it that the kernel takes in.
        adapt: `(anchor, spec, target) -> spec`, called with the configured spec: the form that the kernel computes, or
            narrower weights where the class of deployment device `target` needs them.
        refuses: reason why the kernel cannot take this operand of this anchor with the configured spec, or None.
    """

    name: str
    role: Role
    ch_axis: int | None = None
    absorbs: tuple[PreOp, ...] = ()
    adapt: Adapt | None = None
    refuses: Refusal | None = None


def activation(
    name: str, *, absorbs: tuple[PreOp, ...] = (), adapt: Adapt | None = None, refuses: Refusal | None = None
) -> Operand:
    """An operand that changes with the model's input: it is quantized by the activations' spec."""
    return Operand(name, Role.ACTIVATION, absorbs=absorbs, adapt=adapt, refuses=refuses)


def activations(name: str) -> Operand:
    """A list of tensors, each quantized by the activations' spec."""
    return Operand(name, Role.ACTIVATIONS)


def weight(name: str, *, ch_axis: int, adapt: Adapt | None = None, refuses: Refusal | None = None) -> Operand:
    """A constant tensor, stored as integers; `ch_axis` is the dimension of its output channels."""
    return Operand(name, Role.WEIGHT, ch_axis=ch_axis, adapt=adapt, refuses=refuses)


def bias(name: str, *, adapt: Adapt | None = None) -> Operand:
    """A constant tensor that the kernel adds to its accumulator.

    It stays in float unless the configuration has a spec of biases; `adapt` may derive its scale from those of the
    input and the weight.
    """
    return Operand(name, Role.BIAS, adapt=adapt)


def constant(name: str) -> Operand:
    """A float constant that the kernel takes as it is, such as PReLU's slope; the row declines a computed tensor."""
    return Operand(name, Role.CONSTANT)


@dataclass(frozen=True)
class PostOp:
    """An operator after the anchor that the kernel applies before it writes its result.

    Args:
        target: canonical overload; the canonical form has no in-place variants.
        kernel: name that the device's kernel knows it by.
        clamp: `(node) -> (low, high)`, the limits to which it clamps its input; None where it is not a clamp. A kernel
            that saturates may do a clamp at no cost.
        other: role of the second operand of a binary operator, in either order; None for a unary one.
        check: takes the previous node of the chain and this one; reason why it cannot fuse, or None.
    """

    target: OpOverload
    kernel: str
    clamp: Callable[[Node], tuple[float, float]] | None = None
    other: OtherRole | None = None
    check: Callable[[Node, Node], Reason | None] | None = None
