"""Specs written as JSON come back equal, and build the same observers."""

import functools
import json
from typing import Any

import pytest
import torch
from core_support import ACT, DYNAMIC_ACT, WEIGHT

from qspec_core import (
    FixedQParamsQuantizationSpec,
    QuantizationSpec,
    SharedQuantizationSpec,
    SpecError,
    fake_quantize,
    get_embedding_operators_config,
    observers,
    spec_from_dict,
    spec_to_dict,
)
from qspec_core.observers import (
    AffineQuantizedMinMaxObserver,
    HistogramObserver,
    MappingType,
    MinMaxObserver,
    PerBlock,
    PerGroup,
    build_observer,
)

GROUPS = AffineQuantizedMinMaxObserver.with_args(
    mapping_type=MappingType.SYMMETRIC, target_dtype=torch.int8, granularity=PerGroup(32)
)
BLOCKS = GROUPS.with_args(granularity=PerBlock((1, 16)))
FAKE = fake_quantize.FakeQuantize.with_args(observer=HistogramObserver.with_args(bins=64), reduce_range=False)


def spec(constructor: Any, **options: Any) -> QuantizationSpec:  # whatever a spec takes
    return QuantizationSpec(torch.int8, constructor, **options)


SPECS = {
    "activation": ACT,
    "weight": WEIGHT,
    "dynamic": DYNAMIC_ACT,
    "zero limit": QuantizationSpec(torch.uint8, MinMaxObserver, 0, 15),
    "embedding": get_embedding_operators_config(4).config.weight,
    "groups": spec(GROUPS),
    "blocks": spec(BLOCKS),
    "fake": spec(FAKE),
    "partial": spec(functools.partial(MinMaxObserver, eps=0.25)),
    "float16": QuantizationSpec(torch.float16, observers.PlaceholderObserver),
    "fixed": FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 0, 0, 255, torch.per_tensor_affine),
}


def through_json(given: Any) -> Any:
    return spec_from_dict(json.loads(json.dumps(spec_to_dict(given))))


@pytest.mark.parametrize("name", SPECS)
def test_round_trip(name: str) -> None:
    given: Any = SPECS[name]
    found = through_json(given)
    assert type(found) is type(given)
    assert spec_to_dict(found) == spec_to_dict(given)
    if name != "partial":  # two functools.partial are never equal
        assert found == given
    if isinstance(given, QuantizationSpec):
        before, after = build_observer(given), build_observer(found)
        assert type(before) is type(after)
        assert repr(before) == repr(after)


@pytest.mark.parametrize("module", [observers, fake_quantize], ids=["observers", "fake_quantize"])
def test_every_named_constructor_of_qspec(module: Any) -> None:
    names = [name for name in module.__all__ if name.startswith(("default_", "weight_", "per_channel_", "fused_"))]
    assert len(names) > 10
    for name in names:
        given = spec(getattr(module, name))
        assert through_json(given) == given, name


class Own(MinMaxObserver):
    """A user's class."""


@pytest.mark.parametrize(
    ("constructor", "found"),
    [
        (Own, "Own"),
        (lambda **_: MinMaxObserver(), "lambda"),
        (MinMaxObserver.with_args(dtype=object()), "object object"),
        (MinMaxObserver.with_callable_args(eps=float), "with_callable_args"),
        (functools.partial(Own), "Own"),
    ],
    ids=["class", "function", "argument", "late argument", "partial"],
)
def test_constructors_without_a_json_form_are_refused(constructor: Any, found: str) -> None:
    with pytest.raises(SpecError, match="form in JSON") as caught:
        spec_to_dict(spec(constructor))
    assert found in str(caught.value.found)
    assert "define the spec in code" in caught.value.remedy


def test_specs_that_refer_to_nodes_are_refused() -> None:
    node = torch.fx.Graph().placeholder("x")
    with pytest.raises(SpecError, match="SharedQuantizationSpec has no form in JSON") as caught:
        spec_to_dict(SharedQuantizationSpec(node))  # type: ignore[arg-type]  # the mistake that is tested
    assert "refers to nodes" in caught.value.remedy


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"kind": "Other"}, "has a kind"),
        ({"dtype": {"torch": "int33"}}, "dtype or qscheme"),
        ({"dtype": {"torch": "nn"}}, "dtype or qscheme"),
        ({"observer_or_fake_quant_ctr": {"class": "system"}}, "has a name"),
        ({"surprise": 1}, "does not have the fields"),
        ({"quant_min": 300}, "empty range"),
    ],
    ids=str,
)
def test_invalid_data_is_refused(change: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError, match=problem):
        spec_from_dict(spec_to_dict(ACT) | change)
