"""Specs: accepted and refused arguments, error texts, and the resulting ranges."""

import dataclasses
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.fx import Graph, Node

from qspec_core import (
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    QuantizationAnnotation,
    QuantizationSpec,
    QuantizationSpecBase,
    SharedQuantizationSpec,
    SpecError,
)
from qspec_core._spec import dtype_range
from qspec_core.observers import MinMaxObserver

INT4: torch.dtype = torch.int4  # type: ignore[attr-defined]  # torch's stubs leave it out
UINT4: torch.dtype = torch.uint4  # type: ignore[attr-defined]  # as above

RANGES = [
    (torch.int8, (-128, 127)),
    (torch.uint8, (0, 255)),
    (torch.qint8, (-128, 127)),
    (torch.quint8, (0, 255)),
    (torch.int16, (-32768, 32767)),
    (torch.uint16, (0, 65535)),
    (torch.int32, (-2147483648, 2147483647)),
    (torch.qint32, (-2147483648, 2147483647)),
    (INT4, (-8, 7)),
    (UINT4, (0, 15)),
    (torch.float8_e4m3fn, (-448.0, 448.0)),
    (torch.float8_e5m2, (-57344.0, 57344.0)),
]


def spec(dtype: torch.dtype = torch.int8, **fields: Any) -> QuantizationSpec:  # Any: fields of each test's choice
    return QuantizationSpec(dtype, MinMaxObserver, **fields)


def fixed(dtype: torch.dtype = torch.uint8, **fields: Any) -> FixedQParamsQuantizationSpec:  # as in `spec`
    return FixedQParamsQuantizationSpec(dtype, **{"scale": 1 / 256, "zero_point": 0} | fields)


def derive(observers: object) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.ones(1), torch.zeros(1)


def nodes() -> tuple[Node, Node]:
    graph = Graph()
    first = graph.placeholder("x")
    return first, graph.call_function(torch.relu, (first,))


def derived(**fields: Any) -> DerivedQuantizationSpec:  # as in `spec`
    given: dict[str, Any] = {"derived_from": nodes(), "derive_qparams_fn": derive, "dtype": torch.int32}
    return DerivedQuantizationSpec(**given | fields)


RANGED: list[Callable[..., Any]] = [spec, fixed, derived]  # Any: the three have no common constructor


@pytest.mark.parametrize(("dtype", "limits"), RANGES, ids=str)
def test_range_follows_from_the_dtype(dtype: torch.dtype, limits: tuple[float, float]) -> None:
    assert dtype_range(dtype) == limits
    assert spec(dtype).range == limits
    assert (spec(dtype).quant_min, spec(dtype).quant_max) == (None, None)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32], ids=str)
def test_cast_has_no_range_and_accepts_none(dtype: torch.dtype) -> None:
    assert spec(dtype).range is None
    with pytest.raises(SpecError, match="reached by a cast") as caught:
        spec(dtype, quant_max=127)
    assert "leave quant_min and quant_max out" in caught.value.remedy


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64, torch.float64], ids=str)
def test_dtype_without_quantized_values_is_refused(dtype: torch.dtype) -> None:
    with pytest.raises(SpecError, match="cannot hold quantized values") as caught:
        spec(dtype)
    assert caught.value.found is dtype
    assert "torch.int8" in str(caught.value.expected)


def test_given_limits_replace_those_of_the_dtype_one_by_one() -> None:
    assert spec(quant_min=-127).range == (-127, 127)
    assert spec(quant_max=0).range == (-128, 0)
    assert spec(quant_min=-64, quant_max=63).range == (-64, 63)
    assert spec(quant_min=0).range == (0, 127)  # zero is a limit like any other, not "none given"


@pytest.mark.parametrize("make", RANGED)
@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"quant_min": 5, "quant_max": 5}, "empty range"),
        ({"quant_min": 6, "quant_max": 5}, "empty range"),
        ({"quant_min": 255, "dtype": torch.uint8}, "empty range"),
        ({"quant_max": 256, "dtype": torch.uint8}, "outside its dtype"),
        ({"quant_min": -1, "dtype": torch.uint8}, "outside its dtype"),
        ({"quant_min": -129, "dtype": torch.int8}, "outside its dtype"),
        ({"quant_max": 128, "dtype": torch.int8}, "outside its dtype"),
        ({"quant_max": 8, "dtype": INT4}, "outside its dtype"),
    ],
    ids=str,
)
def test_wrong_range_is_refused(make: Callable[..., Any], limits: dict[str, Any], problem: str) -> None:
    with pytest.raises(SpecError, match=problem) as caught:
        make(**limits)
    assert isinstance(caught.value, ValueError)
    assert "quant_min=" in str(caught.value.found)
    assert caught.value.remedy


@pytest.mark.parametrize("make", [spec, derived])
@pytest.mark.parametrize(
    "qscheme",
    [torch.per_channel_symmetric, torch.per_channel_affine, torch.per_channel_affine_float_qparams],
    ids=str,
)
def test_per_channel_needs_an_axis(make: Callable[..., Any], qscheme: torch.qscheme) -> None:
    with pytest.raises(SpecError, match="no ch_axis") as caught:
        make(qscheme=qscheme)
    assert str(qscheme) in str(caught.value.found)
    assert make(qscheme=qscheme, ch_axis=0).ch_axis == 0
    with pytest.raises(SpecError, match="negative ch_axis"):
        make(qscheme=qscheme, ch_axis=-1)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), float("nan")])
def test_fixed_scale_must_be_finite_and_positive(scale: float) -> None:
    with pytest.raises(SpecError, match="not finite and positive"):
        fixed(scale=scale)


@pytest.mark.parametrize(("zero_point", "limits"), [(-1, {}), (256, {}), (10, {"quant_max": 9})])
def test_fixed_zero_point_must_lie_in_the_range(zero_point: int, limits: dict[str, Any]) -> None:
    with pytest.raises(SpecError, match="zero point outside its range") as caught:
        fixed(zero_point=zero_point, **limits)
    assert str(zero_point) in str(caught.value.found)
    assert fixed(zero_point=255).zero_point == 255


def test_derived_from_is_kept_as_a_tuple_and_must_not_be_empty() -> None:
    first, second = nodes()
    made = derived(derived_from=[(first, second), second])
    assert made.derived_from == ((first, second), second)
    assert hash(made) == hash(derived(derived_from=((first, second), second)))
    with pytest.raises(SpecError, match="derives from 0 points"):
        derived(derived_from=[])


@pytest.mark.parametrize("make", [*RANGED, lambda: SharedQuantizationSpec(nodes()[0])])
def test_specs_are_frozen_and_hashable(make: Callable[..., Any]) -> None:
    made = make()
    assert issubclass(type(made), QuantizationSpecBase)
    assert made in {made}
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(made, dataclasses.fields(made)[0].name, None)


def test_equal_fields_make_equal_specs() -> None:
    assert spec(quant_min=-127) == spec(quant_min=-127)
    assert len({spec(), spec(), spec(quant_min=-127)}) == 2


def test_repr_shows_what_differs_from_the_defaults() -> None:
    assert repr(spec(ch_axis=0, quant_min=0)) == (
        f"QuantizationSpec(dtype=torch.int8, observer_or_fake_quant_ctr={MinMaxObserver!r}, quant_min=0, ch_axis=0)"
    )
    assert repr(fixed()) == "FixedQParamsQuantizationSpec(dtype=torch.uint8, scale=0.00390625, zero_point=0)"
    assert "is_dynamic=True" in repr(spec(is_dynamic=True))
    assert "derived_from=(x, relu)" in repr(derived())


def test_annotations_do_not_share_their_containers() -> None:
    first, second = QuantizationAnnotation(), QuantizationAnnotation()
    first.input_qspec_map[nodes()[0]] = spec()
    first.custom["note"] = 1
    assert (second.input_qspec_map, second.custom) == ({}, {})
    assert (second.output_qspec, second.allow_implicit_sharing, second._annotated) == (None, True, False)
