"""Remarks and the warning about static ranges that are far wider than the spread of the values."""

import warnings
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from core_support import ACT, WEIGHT, Net, export, quantizer
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import Coverage, QuantizationConfig, WideRangeWarning, convert_pt2e, coverage, prepare_pt2e
from qspec_core.observers import HistogramObserver


def calibrated(x: Tensor) -> GraphModule:
    model = Net(lambda m, x: m.last(torch.tanh(m.first(x))), first=nn.Linear(8, 8), last=nn.Linear(8, 8))
    activation = replace(ACT, observer_or_fake_quant_ctr=HistogramObserver)
    config = QuantizationConfig(activation, activation, WEIGHT, None)
    prepared = prepare_pt2e(export(model, x), quantizer(config))
    with torch.no_grad():
        prepared(x)
    return prepared


def with_outlier(value: float) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(4000, 8)
    x[0, 0] = value
    return x


def test_a_range_far_from_the_spread_is_a_remark_and_a_warning() -> None:
    with pytest.warns(
        WideRangeWarning, match="more than 88 standard deviations of the values: 1\\. The widest"
    ) as caught:
        converted = convert_pt2e(calibrated(with_outlier(500.0)))
    assert len(caught) == 1
    first, last = (entry for entry in coverage(converted) if entry.is_layer)
    assert (first.remarks, last.remarks) == (("wide range",), ())
    assert first.detail.startswith("wide range: inputs_0, which it reads, has a range of 483 at")
    assert str(first).endswith(first.detail)
    assert "  1 x aten.linear.default: quantized, wide range" in coverage(converted).summary().splitlines()


def test_the_prepared_module_keeps_its_coverage() -> None:
    prepared = calibrated(with_outlier(500.0))
    before = coverage(prepared)
    with pytest.warns(WideRangeWarning):
        converted = convert_pt2e(prepared)
    assert coverage(prepared) == before
    ((mine, theirs),) = before.compare(coverage(converted))
    assert mine is not None
    assert theirs is not None
    assert (mine.remarks, theirs.remarks) == ((), ("wide range",))


def test_other_figures_are_no_difference() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WideRangeWarning)
        found = [coverage(convert_pt2e(calibrated(with_outlier(value)))) for value in (500.0, 900.0)]
    assert found[0] != found[1]
    assert found[0].compare(found[1]) == ()
    assert Coverage.from_dict(found[0].to_dict()) == found[0]


@pytest.mark.parametrize("value", [1.0, 60.0])
def test_ranges_of_60_standard_deviations_and_less_are_not_named(value: float) -> None:
    converted = convert_pt2e(calibrated(with_outlier(value)))  # a warning would be an error
    assert not any(entry.remarks for entry in coverage(converted))


@pytest.mark.parametrize("values", [torch.randn, torch.rand], ids=["normal", "uniform"])
def test_a_histogram_knows_the_spread_of_its_values(values: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    batches = values(2, 5000) * 3 + 1
    observer = HistogramObserver()
    assert observer.spread is None
    for batch in batches:
        observer(batch)
    assert observer.spread == pytest.approx(float(batches.std()), rel=1e-2)
