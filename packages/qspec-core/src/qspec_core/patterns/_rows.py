"""The row: one operator pattern as data, read alike by annotation, lowering, tests and docs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from typing import TYPE_CHECKING, Any

from torch.fx import Node

from qspec_core._spec import QuantizationSpec
from qspec_core._torch import OpOverload

if TYPE_CHECKING:
    from qspec_core.patterns._matcher import Match

__all__ = [
    "DELEGATED",
    "Delegated",
    "Flow",
    "Mode",
    "Operand",
    "OtherRole",
    "Outputs",
    "PatternTable",
    "PostOp",
    "PreOp",
    "Reason",
    "ReasonCode",
    "Role",
    "Row",
    "activation",
    "activations",
    "bias",
    "weight",
]


class ReasonCode(StrEnum):
    """Why an operator is not quantized. The values are stable: they are written into coverage files."""

    NO_ROW = "no row"
    EXCLUDED = "excluded by configuration"
    NOT_SELECTED = "not selected by any configuration"
    UNSUPPORTED_ARGUMENT = "unsupported argument"
    UNSUPPORTED_MODE = "unsupported mode"
    NOT_FLOATING_POINT = "not floating point"
    INPUT_NOT_QUANTIZED = "input not quantized"
    NO_INTEGER_READER = "no integer reader"
    NO_INTEGER_KERNEL = "no integer kernel"
    ALREADY_QUANTIZED = "already quantized"
    NOT_ANNOTATED = "not annotated by the quantizer"


@dataclass(frozen=True)
class Reason:
    """Why a row declines a node, or why a node stays in float."""

    code: ReasonCode
    detail: str = ""

    def __str__(self) -> str:
        return f"{self.code.value}: {self.detail}" if self.detail else self.code.value


class Role(Enum):
    """What an operand is to the kernel."""

    ACTIVATION = "activation"
    ACTIVATIONS = "activations"  # a list of tensors, as cat takes
    WEIGHT = "weight"
    BIAS = "bias"


class Flow(Enum):
    """How a row meets integers."""

    STARTS = "starts"  # worth a quantize of its inputs
    JOINS = "joins"  # runs in integers where every input is integer already
    SHARES = "shares"  # joins, and its output has the parameters of its input


class Mode(Enum):
    """When activations are quantized."""

    STATIC = "static"
    DYNAMIC = "dynamic"
    WEIGHT_ONLY = "weight only"


class OtherRole(Enum):
    """What the second operand of a binary post-op is."""

    QUANTIZED = "quantized"
    FLOAT = "float"


class Outputs(Enum):
    """Where a device wants outputs quantized."""

    DEMAND = "demand"  # only towards integer readers
    ALWAYS = "always"  # every output of an integer kernel


Check = Callable[[Node], Reason | None]
Fit = Callable[[Node, QuantizationSpec], QuantizationSpec]
Refusal = Callable[[Node, QuantizationSpec], Reason | None]


@dataclass(frozen=True)
class PreOp:
    """An operator before the anchor that the kernel absorbs: a zero pad, say. The quantized edge moves before it.

    Args:
        target: canonical overload.
        operand: schema name of its data input.
        check: reason why this call cannot be absorbed, or None.
        modes: when the kernel absorbs it; at other times the row does not match behind it. None for always.
    """

    target: OpOverload
    operand: str = "self"
    check: Check | None = None
    modes: frozenset[Mode] | None = None

    def absorbs_in(self, mode: Mode) -> bool:
        """Whether the kernel absorbs it when activations are quantized so."""
        return self.modes is None or mode in self.modes


@dataclass(frozen=True)
class Operand:
    """One operand of the anchor.

    Args:
        name: argument name in the operator's schema.
        role: what it is to the kernel.
        ch_axis: dimension of a weight's output channels.
        absorbs: operators before it that the kernel takes in.
        narrow: for a deployment target that needs narrower weights: the spec for this anchor, from the one configured.
        adapt: the form of the configured spec that the kernel computes, for this anchor, on every target.
        refuses: reason why the kernel cannot take this operand of this anchor with the configured spec, or None.
    """

    name: str
    role: Role
    ch_axis: int | None = None
    absorbs: tuple[PreOp, ...] = ()
    narrow: Fit | None = None
    adapt: Fit | None = None
    refuses: Refusal | None = None


def activation(
    name: str, *, absorbs: tuple[PreOp, ...] = (), adapt: Fit | None = None, refuses: Refusal | None = None
) -> Operand:
    """An operand that changes with the input: quantized as activations are."""
    return Operand(name, Role.ACTIVATION, absorbs=absorbs, adapt=adapt, refuses=refuses)


def activations(name: str) -> Operand:
    """A list of tensors, each quantized as activations are."""
    return Operand(name, Role.ACTIVATIONS)


def weight(name: str, *, ch_axis: int, narrow: Fit | None = None, refuses: Refusal | None = None) -> Operand:
    """A constant tensor, stored as integers; `ch_axis` is the dimension of its output channels."""
    return Operand(name, Role.WEIGHT, ch_axis=ch_axis, narrow=narrow, refuses=refuses)


def bias(name: str) -> Operand:
    """A constant tensor that the kernel adds to its accumulator."""
    return Operand(name, Role.BIAS)


@dataclass(frozen=True)
class PostOp:
    """An operator after the anchor that the kernel applies before it writes its result.

    Args:
        target: canonical overload; the canonical form has no in-place variants.
        kernel: name that the device's kernel knows it by.
        scalars: the constants that the kernel takes for this call.
        other: role of the second operand of a binary operator, in either order; None for a unary one.
        check: takes the previous node of the chain and this one; reason why it cannot fuse, or None.
    """

    target: OpOverload
    kernel: str
    scalars: Callable[[Node], list[float]] | None = None
    other: OtherRole | None = None
    check: Callable[[Node, Node], Reason | None] | None = None


@dataclass(frozen=True)
class Delegated:
    """Lowering of a row whose device takes the quantized pattern as it stands (a partitioner)."""


DELEGATED = Delegated()

Lower = Callable[["Match", Any], Reason | None]  # the second is qspec_core.lowering.Lowering, a layer above


@dataclass(frozen=True)
class Row:
    """One operator pattern of a device.

    Args:
        name: unique in its table; coverage, docs and tests show it.
        anchor: canonical operator overload that the pattern starts from.
        operands: the anchor's tensor operands, by role.
        chains: whole chains of post-ops that may follow, longest first; `()` is the anchor alone.
        flow: how the row meets integers.
        modes: when it may quantize activations.
        lower: rewrites a match in the converted graph, returning the reason if it cannot; or `DELEGATED`.
        checks: each gives the reason why a call of the anchor cannot run in the kernel, or None.
    """

    name: str
    anchor: OpOverload
    operands: tuple[Operand, ...]
    chains: tuple[tuple[PostOp, ...], ...]
    flow: Flow
    modes: frozenset[Mode]
    lower: Lower | Delegated
    checks: tuple[Check, ...] = ()

    @property
    def activations(self) -> tuple[Operand, ...]:
        """Operands with an activation role."""
        return tuple(o for o in self.operands if o.role in (Role.ACTIVATION, Role.ACTIVATIONS))

    @property
    def has_weight(self) -> bool:
        """Whether the row holds a weight: a layer, in the words of a coverage report."""
        return any(operand.role is Role.WEIGHT for operand in self.operands)


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
