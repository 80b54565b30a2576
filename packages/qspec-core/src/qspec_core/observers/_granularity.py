"""Granularities (which elements of a tensor share a scale) and the other options of affine observers."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum, auto

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
]


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


def get_block_size(
    input_shape: Sequence[int | torch.SymInt], granularity: Granularity
) -> tuple[int | torch.SymInt, ...]:
    """Size, in every dimension, of the blocks whose elements share a scale.

    Args:
        input_shape: shape of the tensor; sizes may be symbolic.
        granularity: the granularity.
    Raises: SpecError: the granularity names a dimension that the shape lacks, or its blocks do not divide the shape.
    """
    shape = tuple(input_shape)
    match granularity:
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
