"""Granularities and options of other stacks, read by name and fields: they give the parameters of qspec's own."""

from dataclasses import dataclass, make_dataclass
from enum import Enum, auto
from typing import Any

import pytest
import torch

from qspec_core import QuantizationSpec, SpecError
from qspec_core.fake_quantize import AffineFakeQuantize
from qspec_core.observers import (
    AffineQuantizedMinMaxObserver,
    Granularity,
    MappingType,
    PerAxis,
    PerBlock,
    PerGroup,
    PerRow,
    PerTensor,
    PerToken,
    get_block_size,
)

OWN: list[Granularity] = [PerTensor(), PerAxis(1), PerGroup(2), PerRow(0), PerToken(), PerBlock((2, 3))]


def foreign(own: Granularity) -> Any:  # a class that this test makes
    """An object of another class with the name and fields of `own`."""
    kind = make_dataclass(type(own).__name__, list(vars(own)), frozen=True)
    return kind(**vars(own))


Foreign = Enum("Foreign", "ASYMMETRIC SYMMETRIC")


@pytest.mark.parametrize("own", OWN, ids=str)
def test_granularity_of_another_stack(own: Granularity) -> None:
    assert get_block_size((4, 6), foreign(own)) == get_block_size((4, 6), own)
    x = torch.randn(4, 6)
    found = []
    for granularity, mapping in ((own, MappingType.ASYMMETRIC), (foreign(own), Foreign.ASYMMETRIC)):
        observer = AffineQuantizedMinMaxObserver(mapping, torch.int8, granularity)  # type: ignore[arg-type]  # on purpose
        observer(x)
        assert observer.granularity == own
        found.append(observer.calculate_qparams())
    for mine, theirs in zip(*found, strict=True):
        assert torch.equal(mine, theirs)
    assert found[0][1].any()  # a symmetric mapping would have zero points of 0


def test_fake_quantize_takes_it() -> None:
    constructor = AffineFakeQuantize.with_args(
        mapping_type=Foreign.SYMMETRIC, target_dtype=torch.int8, granularity=foreign(PerAxis(0))
    )
    module = constructor()
    x = torch.randn(4, 6)
    own = AffineFakeQuantize(mapping_type=MappingType.SYMMETRIC, target_dtype=torch.int8, granularity=PerAxis(0))
    assert torch.equal(module(x), own(x))
    assert QuantizationSpec(torch.int8, constructor).dtype is torch.int8


@dataclass(frozen=True)
class PerColumn:
    """A granularity that qspec does not have."""

    dim: int = 0


class OtherMapping(Enum):
    LOGARITHMIC = auto()


def test_unknown_ones_are_named() -> None:
    with pytest.raises(SpecError, match="not one that qspec knows") as caught:
        AffineQuantizedMinMaxObserver(MappingType.SYMMETRIC, torch.int8, PerColumn())  # type: ignore[arg-type]  # on purpose
    assert "PerColumn(dim=0)" in str(caught.value.found)
    assert "PerAxis" in str(caught.value.expected)
    with pytest.raises(SpecError, match="not one that qspec knows"):
        get_block_size((4, 6), type("PerAxis", (), {})())  # without its field
    with pytest.raises(SpecError, match="no MappingType") as caught:
        AffineQuantizedMinMaxObserver(OtherMapping.LOGARITHMIC, torch.int8, PerTensor())  # type: ignore[arg-type]  # on purpose
    assert "ASYMMETRIC" in str(caught.value.expected)
