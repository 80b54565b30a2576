"""Granularities (which elements of a tensor share a scale) and the other options of affine observers."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from enum import Enum, auto
from typing import TypeVar

import torch

from qspec_core._errors import SpecError

__all__ = [
    "Granularity",
    "MappingType",
    "PerAxis",
    "PerBlock",
    "PerGroup",
    "PerRow",
    "PerTensor",
    "PerToken",
    "TorchAODType",
    "ZeroPointDomain",
    "get_block_size",
    "read_granularity",
    "read_option",
]

Option = TypeVar("Option", bound=Enum)


class MappingType(Enum):
    """How real numbers are mapped to quantized values."""

    SYMMETRIC = auto()
    """The range is as long below 0 as above it; its lower end maps to the smallest quantized value."""
    SYMMETRIC_NO_CLIPPING_ERR = auto()
    """As SYMMETRIC, with the smallest scale that clips neither end."""
    ASYMMETRIC = auto()
    """The range of the data, extended to include 0."""


class ZeroPointDomain(Enum):
    """The kind of number that a zero point is."""

    INT = auto()
    """An integer, one of the quantized values."""
    FLOAT = auto()
    """A real number."""
    NONE = auto()
    """No zero point: quantized 0 stands for 0.0."""


class TorchAODType(Enum):
    """Signed integers of fewer than 8 bits, by their number of bits."""

    INT1 = auto()
    INT2 = auto()
    INT3 = auto()
    INT4 = auto()
    INT5 = auto()
    INT6 = auto()
    INT7 = auto()


@dataclass(frozen=True)
class Granularity:
    """Base of the granularities."""


@dataclass(frozen=True)
class PerTensor(Granularity):
    """One scale for the whole tensor."""


@dataclass(frozen=True)
class PerAxis(Granularity):
    """One scale for each index of a dimension: the channels of a weight."""

    axis: int


@dataclass(frozen=True)
class PerGroup(Granularity):
    """One scale for each run of `group_size` elements along the last dimension."""

    group_size: int


@dataclass(frozen=True)
class PerRow(Granularity):
    """One scale for each vector along a dimension."""

    dim: int = -1


@dataclass(frozen=True)
class PerToken(Granularity):
    """One scale for each vector along the last dimension, which holds the features of a token."""


@dataclass(frozen=True)
class PerBlock(Granularity):
    """One scale for each block of a size given for every dimension."""

    block_size: tuple[int, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "block_size", tuple(self.block_size))


def read_granularity(granularity: object) -> Granularity:
    """A granularity of qspec's class. One of another stack is read by the name of its class and by its fields.

    Raises: SpecError: there is no granularity of this name, or a field is missing.
    """
    if isinstance(granularity, Granularity):
        return granularity
    known = {kind.__name__: kind for kind in (PerTensor, PerAxis, PerGroup, PerRow, PerToken, PerBlock)}
    kind = known.get(type(granularity).__name__)
    names = [field.name for field in fields(kind)] if kind is not None else []
    if kind is None or not all(hasattr(granularity, name) for name in names):
        raise SpecError(
            "the granularity is not one that qspec knows",
            found=f"{type(granularity).__module__}.{type(granularity).__qualname__}: {granularity!r}",
            expected=f"an instance of {', '.join(known)}, or of a class with the same name and fields",
            remedy="pass one of qspec_core.observers, such as PerAxis(0)",
        )
    made: Granularity = kind(**{name: getattr(granularity, name) for name in names})
    return made


def read_option(kind: type[Option], value: object) -> Option:
    """A member of one of the enumerations here. A member of another stack's enumeration is read by its name.

    Raises: SpecError: the enumeration has no member of this name.
    """
    if isinstance(value, kind):
        return value
    if isinstance(value, Enum) and value.name in kind.__members__:
        return kind[value.name]
    raise SpecError(
        f"there is no {kind.__name__} {value!r}",
        found=value,
        expected=", ".join(kind.__members__),
        remedy=f"pass a member of qspec_core.observers.{kind.__name__}",
    )


def get_block_size(
    input_shape: Sequence[int | torch.SymInt], granularity: Granularity
) -> tuple[int | torch.SymInt, ...]:
    """Size, in every dimension, of the blocks whose elements share a scale.

    Args:
        input_shape: shape of the tensor; sizes may be symbolic.
        granularity: the granularity; one of another stack is read by its fields.
    Raises: SpecError: the granularity names a dimension that the shape lacks, or its blocks do not divide the shape.
    """
    shape = tuple(input_shape)
    match read_granularity(granularity):
        case PerTensor():
            return shape
        case PerAxis(axis) if -len(shape) <= axis < len(shape):
            return tuple(1 if i == axis % len(shape) else size for i, size in enumerate(shape))
        case PerGroup(size) if shape and size > 0 and shape[-1] % size == 0:
            return (*(1 for _ in shape[1:]), size)
        case PerToken() if shape:
            return (*(1 for _ in shape[1:]), shape[-1])
        case PerRow(dim) if -len(shape) <= dim < len(shape):
            return tuple(size if i == dim % len(shape) else 1 for i, size in enumerate(shape))
        case PerBlock(block) if len(block) == len(shape) and all(
            part > 0 and size % part == 0 for part, size in zip(block, shape, strict=True)
        ):
            return block
        case _:
            raise SpecError(
                "the granularity does not fit the tensor's shape",
                found=f"{granularity}, shape {shape}",
                expected="dimensions that the tensor has, and blocks that divide them",
                remedy="choose another granularity for this tensor, or leave the layer in float",
            )
