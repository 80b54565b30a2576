"""Edges that read through an observer, and edges that read the tensor itself."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from core_support import ACT, Custom, Net, affine_parameters, at_activation, aten, calls, export, simulate
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import Q_ANNOTATION_KEY, QuantizationAnnotation, QuantizationSpec, convert_pt2e, prepare_pt2e


@pytest.mark.parametrize("output", [ACT, None], ids=["with an output spec", "without"])
def test_written_edge_stays_on_the_tensor_itself(output: QuantizationSpec | None) -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.state.add_(x)
        return m.state * 2  # type: ignore[no-any-return]  # as above

    def annotate(model: GraphModule) -> None:
        (state,) = model.graph.find_nodes(op="get_attr")
        (write,) = calls(model, aten.add_.Tensor)
        state.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=output)
        write.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({state: replace(ACT, quant_max=127)})

    prepared = prepare_pt2e(export(Net(forward, state=torch.zeros(2)), torch.ones(2)), Custom(annotate))
    (write,) = calls(prepared, aten.add_.Tensor)
    assert write.args[0].op == "get_attr"  # type: ignore[union-attr]  # a node
    prepared(torch.ones(2))
    assert torch.equal(prepared.get_buffer("state"), torch.ones(2))


def test_written_edge_that_nobody_else_sees_is_observed() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = x * 2
        y += x
        return y

    def annotate(model: GraphModule) -> None:
        (write,) = calls(model, aten.add_.Tensor)
        write.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(dict.fromkeys(write.all_input_nodes, ACT), ACT)

    x = torch.randn(2, 4)
    prepared = prepare_pt2e(export(Net(forward), x), Custom(annotate))
    (write,) = calls(prepared, aten.add_.Tensor)
    assert [node.op for node in write.all_input_nodes] == ["call_module", "call_module"]
    assert torch.equal(prepared(x), x * 2 + x)
    total = at_activation(x * 2) + at_activation(x)
    assert torch.equal(convert_pt2e(prepared)(x), simulate(total, *affine_parameters(x * 2 + x), 0, 255))


def test_guards_read_the_inputs_themselves() -> None:
    def annotate(model: GraphModule) -> None:
        (x,) = model.graph.find_nodes(op="placeholder")
        x.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=ACT)

    x = torch.randn(2, 4)
    prepared = prepare_pt2e(export(nn.ReLU(), x), Custom(annotate))
    (guard,) = [node for node in prepared.graph.nodes if node.op == "call_module" and not node.users]
    assert guard.all_input_nodes[0].op == "placeholder"
    prepared(x)
    assert torch.equal(convert_pt2e(prepared)(x), at_activation(x).relu())
