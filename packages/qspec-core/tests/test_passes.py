"""Passes for anyone who composes a flow from parts, on graphs made by hand."""

from typing import Any

import pytest
import torch
from core_support import ACT, Net, aten, calls, decomposed, export, quantized, targets
from torch import Tensor
from torch.fx import GraphModule, Node

from qspec_core import Q_ANNOTATION_KEY, QuantizationAnnotation
from qspec_core._reference import to_reference
from qspec_core.passes import DuplicateDQPass, PortNodeMetaForQDQ, constant_fold, reference_representation_rewrite

QUANTIZE, DEQUANTIZE = decomposed.quantize_per_tensor.default, decomposed.dequantize_per_tensor.default
LIMITS = 0.1, 3, 0, 255, torch.uint8


def one(module: GraphModule, target: Any) -> Node:  # an overload, which torch leaves untyped
    (node,) = calls(module, target)
    return node


def annotate(node: Node, *sources: Node, output: bool = False) -> None:
    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(dict.fromkeys(sources, ACT), ACT if output else None)


def shared(_: Any, x: Tensor) -> tuple[Tensor, ...]:
    y = DEQUANTIZE(QUANTIZE(x, *LIMITS), *LIMITS)
    return torch.tanh(y), torch.sigmoid(y), torch.relu(y)


@pytest.mark.parametrize(("annotated", "dequantizes"), [((), 1), (("tanh",), 2), (("tanh", "sigmoid", "relu"), 3)])
def test_each_annotated_reader_has_a_dequantize_of_its_own(annotated: tuple[str, ...], dequantizes: int) -> None:
    x = torch.randn(4)
    module = export(Net(shared), x)
    want = module(x)
    readers = [node for node in calls(module) if node.name in annotated]
    for node in readers:
        annotate(node, node.all_input_nodes[0])
    result = DuplicateDQPass()(module)
    assert result is not None
    assert result.modified == (dequantizes > 1)
    assert result.graph_module is module
    module.graph.lint()
    assert len(calls(module, DEQUANTIZE)) == dequantizes
    sources = [node.all_input_nodes[0] for node in readers]
    assert len(set(sources)) == len(sources)
    assert all(len(source.users) == 1 for source in sources)
    assert all(torch.equal(a, b) for a, b in zip(module(x), want, strict=True))


def dynamic(_: Any, x: Tensor) -> tuple[Tensor, ...]:
    qparams = decomposed.choose_qparams.tensor(x, 0, 255, 2**-12, torch.uint8)
    q = decomposed.quantize_per_tensor.tensor(x, *qparams, 0, 255, torch.uint8)
    y = decomposed.dequantize_per_tensor.tensor(q, *qparams, 0, 255, torch.uint8)
    return torch.tanh(y), torch.sigmoid(y)


def test_dequantize_with_a_dynamic_scale_is_not_duplicated() -> None:
    module = export(Net(dynamic), torch.randn(4))
    for node in calls(module, aten.tanh.default, aten.sigmoid.default):
        annotate(node, node.all_input_nodes[0])
    result = DuplicateDQPass()(module)
    assert result is not None
    assert not result.modified


def tagged(module: GraphModule) -> dict[str, str]:
    return {node.name: node.meta["quantization_tag"] for node in module.graph.nodes if "quantization_tag" in node.meta}


def test_metadata_of_readers_and_producers_is_copied() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:  # a buffer by name
        y = torch.tanh(DEQUANTIZE(QUANTIZE(x, *LIMITS), *LIMITS))
        w = DEQUANTIZE(QUANTIZE(m.w, *LIMITS), *LIMITS)
        result: Tensor = DEQUANTIZE(QUANTIZE(y, *LIMITS), *LIMITS) + w
        return result

    module = export(Net(forward, w=torch.randn(4)), torch.randn(4))
    (x,), (w,) = module.graph.find_nodes(op="placeholder"), module.graph.find_nodes(op="get_attr")
    tanh, add = one(module, aten.tanh.default), one(module, aten.add.Tensor)
    annotate(tanh, x, output=True)
    annotate(add, w)
    for node, tag in ((tanh, "T"), (add, "A"), (w, "W")):
        node.meta["quantization_tag"] = tag
    PortNodeMetaForQDQ()(module)
    of_x, of_w, of_y = calls(module, QUANTIZE)
    (dq_x,), (dq_w,), (dq_y,) = of_x.users, of_w.users, of_y.users
    want = {tanh: "T", add: "A", w: "W", dq_x: "T", of_y: "T", of_w: "W", dq_w: "A"}
    assert tagged(module) == {node.name: tag for node, tag in want.items()}
    assert dq_y.name not in tagged(module)  # its reader's annotation has no spec for it
    assert dq_w.meta["stack_trace"] == add.meta["stack_trace"]


def test_choose_qparams_gets_the_metadata_of_the_reader() -> None:
    module = export(Net(dynamic), torch.randn(4))
    (x,) = module.graph.find_nodes(op="placeholder")
    tanh = one(module, aten.tanh.default)
    annotate(tanh, x)
    tanh.meta["quantization_tag"] = "T"
    PortNodeMetaForQDQ()(module)
    assert list(tagged(module)) == ["choose_qparams", "quantize_per_tensor", "dequantize_per_tensor", "tanh"]


def test_constants_are_computed_up_to_integers() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:  # a buffer by name
        result: Tensor = x + DEQUANTIZE(QUANTIZE(m.w.neg() * 2, *LIMITS), *LIMITS) + m.w
        return result

    w, x = torch.randn(4), torch.randn(4)
    module = export(Net(forward, w=w), x)
    want = module(x)
    constant_fold(module)
    module.graph.lint()
    assert [str(node.target) for node in calls(module)] == [
        "quantized_decomposed.dequantize_per_tensor.default",
        "aten.add.Tensor",
        "aten.add.Tensor",
    ]
    assert torch.equal(module(x), want)
    assert dict(module.named_buffers())["_frozen_param0"].dtype is torch.uint8


def test_only_what_is_asked_for_is_computed() -> None:
    w, x = torch.randn(4), torch.randn(4)
    module = export(Net(lambda m, x: (x + m.w.neg(), x + m.w.exp()), w=w), x)
    constant_fold(module, lambda node: node.target is aten.neg.default)
    assert sorted(targets(module)) == ["aten.add.Tensor", "aten.add.Tensor", "aten.exp.default"]
    assert all(torch.equal(a, b) for a, b in zip(module(x), (x - w, x + w.exp()), strict=True))


def test_mutated_buffer_is_not_constant() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:  # a buffer by name
        y: Tensor = x + m.state.neg()
        m.state.add_(1)
        return y

    module = export(Net(forward, state=torch.zeros(2)), torch.zeros(2))
    constant_fold(module)
    assert [module(torch.zeros(2)).tolist() for _ in range(2)] == [[0.0, 0.0], [-1.0, -1.0]]


def test_reference_representation_has_its_pt2e_name() -> None:
    x = torch.randn(8, 4)
    converted = quantized(export(torch.nn.Linear(4, 4), x), (x,))
    assert torch.equal(reference_representation_rewrite(converted)(x), to_reference(converted)(x))
