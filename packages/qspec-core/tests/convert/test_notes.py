"""`quantization_tag` and source lines of operators are copied to the nodes made for them."""

from typing import Any

import pytest
import torch
from core_support import ACT, DYNAMIC_ACT, WEIGHT, Net, aten, calls, export
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core import Q_ANNOTATION_KEY, QuantizationAnnotation, QuantizationSpec, Quantizer, convert_pt2e, prepare_pt2e

TAG = "quantization_tag"


class Tagging(Quantizer):
    """Annotates and tags both linear layers, their weights too; operators between them stay as they are."""

    def __init__(self, act: QuantizationSpec, output: bool) -> None:
        self.act, self.output = act, output

    def annotate(self, model: GraphModule) -> GraphModule:
        for index, node in enumerate(calls(model, aten.linear.default)):
            source, weight = node.all_input_nodes[:2]
            spec = self.act if self.output else None
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({source: self.act, weight: WEIGHT}, spec)
            node.meta[TAG] = weight.meta[TAG] = f"linear {index}"
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept everything."""


def between(m: Any, x: Tensor) -> Tensor:  # submodules by name
    return m.second(torch.tanh(m.first(x)))  # type: ignore[no-any-return]  # as above


def converted(act: QuantizationSpec, *, output: bool, fold: bool = True) -> GraphModule:
    x = torch.randn(8, 4)
    exported = export(Net(between, first=nn.Linear(4, 4), second=nn.Linear(4, 4)), x)
    prepared = prepare_pt2e(exported, Tagging(act, output))
    prepared(x)
    return convert_pt2e(prepared, fold_quantize=fold)


def tags(module: GraphModule, word: str) -> list[str | None]:
    """Tags of the calls whose operator has this name, in graph order."""
    return [node.meta.get(TAG) for node in calls(module) if f".{word}." in str(node.target)]


def test_static_tags() -> None:
    """The first quantize and the last dequantize belong to no annotated operator, nor do those around tanh."""
    module = converted(ACT, output=True)
    assert tags(module, "quantize_per_tensor") == [None, "linear 0", None, "linear 1"]
    assert tags(module, "dequantize_per_tensor") == ["linear 0", None, "linear 1", None]
    assert tags(module, "dequantize_per_channel") == ["linear 0", "linear 1"]
    frozen = [node for node in module.graph.find_nodes(op="get_attr") if "_frozen_param" in str(node.target)]
    assert [node.meta[TAG] for node in frozen] == ["linear 0", "linear 1"]


def test_output_without_a_spec_passes_on_no_tag() -> None:
    module = converted(ACT, output=False)
    assert tags(module, "quantize_per_tensor") == [None, None]
    assert tags(module, "dequantize_per_tensor") == ["linear 0", "linear 1"]


def test_weights_that_stay_float_tag_their_quantize() -> None:
    assert tags(converted(ACT, output=False, fold=False), "quantize_per_channel") == ["linear 0", "linear 1"]


@pytest.mark.parametrize("word", ["choose_qparams", "quantize_per_tensor", "dequantize_per_tensor"])
def test_dynamic_tags(word: str) -> None:
    assert tags(converted(DYNAMIC_ACT, output=False), word) == ["linear 0", "linear 1"]


def test_source_lines_are_those_of_the_operator() -> None:
    module = converted(ACT, output=True)

    def line(node: Node) -> str:
        return str(node.meta["stack_trace"])

    for linear in calls(module, aten.linear.default):
        for dequantize in linear.all_input_nodes[:2]:
            assert line(dequantize) == line(linear)
        (quantize,) = linear.users
        assert line(quantize) == line(linear)
