"""The plan of convert searches all histograms of a graph in one call."""

from typing import Any

import pytest
import torch
from core_support import WEIGHT, Net, aten, calls, export
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import Q_ANNOTATION_KEY, QuantizationAnnotation, QuantizationSpec, Quantizer, convert_pt2e, prepare_pt2e
from qspec_core.fake_quantize import FakeQuantize
from qspec_core.observers import HistogramObserver
from qspec_core.observers._range_search import best_ranges

LIMITS = {"dtype": torch.uint8, "quant_min": 0, "quant_max": 255, "qscheme": torch.per_tensor_affine}
OBSERVED = QuantizationSpec(observer_or_fake_quant_ctr=HistogramObserver, **LIMITS)  # type: ignore[arg-type]  # a table
TRAINED = QuantizationSpec(observer_or_fake_quant_ctr=FakeQuantize.with_args(observer=HistogramObserver), **LIMITS)  # type: ignore[arg-type]  # a table


class Histograms(Quantizer):
    """Annotates the inputs of linear layers with histograms, by turns as observers and within fake-quantizes."""

    def annotate(self, model: GraphModule) -> GraphModule:
        for index, node in enumerate(calls(model, aten.linear.default)):
            source, weight = node.all_input_nodes[:2]
            spec = TRAINED if index % 2 else OBSERVED
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({source: spec, weight: WEIGHT})
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept everything."""


def chain(m: Any, x: Tensor) -> Tensor:  # submodules by name
    return m.third(torch.relu(m.second(torch.tanh(m.first(x)))))  # type: ignore[no-any-return]  # as above


def test_histograms_of_a_graph_are_searched_together(monkeypatch: pytest.MonkeyPatch) -> None:
    searched: list[int] = []

    def counted(histograms: Any) -> Any:  # of the function itself
        searched.append(len(histograms))
        return best_ranges(histograms)

    monkeypatch.setattr("qspec_core.observers._histogram.best_ranges", counted)
    x = torch.randn(300, 4)
    layers = {name: nn.Linear(4, 4) for name in ("first", "second", "third")}
    prepared = prepare_pt2e(export(Net(chain, **layers), x), Histograms())
    prepared(x)
    observers = [part for part in prepared.modules() if isinstance(part, HistogramObserver)]
    scales = [observer.calculate_qparams()[0].item() for observer in observers]
    searched.clear()
    converted = convert_pt2e(prepared)
    assert searched == [3]
    quantize = calls(converted, torch.ops.quantized_decomposed.quantize_per_tensor.default)
    assert [node.args[1] for node in quantize] == scales
