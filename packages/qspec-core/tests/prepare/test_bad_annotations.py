"""Bad annotations, quantizers and models: the right error, a message that leads to the mistake, an unchanged model."""

import io
from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_support import ACT, CONFIG, Custom, Frozen, aten, calls, export, quantizer, table
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import (
    Q_ANNOTATION_KEY,
    AnnotationError,
    GraphError,
    QSpecError,
    QuantizationAnnotation,
    SharedQuantizationSpec,
    SharingError,
    TableQuantizer,
    convert_pt2e,
    coverage,
    prepare_pt2e,
)
from qspec_core.graph import observer_nodes


class Layer(nn.Module):
    """Calls operators of each kind from a line of the user's."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        y = torch.relu(self.first(x))
        values, _ = torch.max(y, 1)  # the line that messages name
        return values + steps


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = Layer()

    def forward(self, x: Tensor, steps: Tensor) -> Tensor:
        result: Tensor = self.body(x, steps)
        return result


INPUTS = torch.randn(2, 4), torch.tensor([1, 2])
EXPORTED = export(Model(), *INPUTS)
OTHER = export(nn.Linear(4, 4), INPUTS[0])


def only(model: GraphModule, target: Any) -> Any:  # a node
    (node,) = calls(model, target)
    return node


def annotate(node: Any, inputs: Any = None, output: Any = None) -> None:  # mistakes of every kind
    node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(inputs or {}, output)


def integer_input(model: GraphModule) -> None:
    node = only(model, aten.add.Tensor)
    annotate(node, {node.args[1]: ACT})


def tuple_output(model: GraphModule) -> None:
    annotate(only(model, aten.max.dim), output=ACT)


def not_an_edge(model: GraphModule) -> None:
    annotate(only(model, aten.max.dim), {only(model, aten.linear.default): ACT})


def node_of_another_graph(model: GraphModule) -> None:
    annotate(only(model, aten.max.dim), {only(OTHER, aten.linear.default): ACT})


def stale(model: GraphModule) -> None:
    relu, largest = only(model, aten.relu.default), only(model, aten.max.dim)
    annotate(largest, {relu: ACT})
    relu.replace_all_uses_with(relu.args[0])
    model.graph.erase_node(relu)


def shared_with_another_graph(model: GraphModule) -> None:
    largest = only(model, aten.max.dim)
    annotate(largest, {largest.args[0]: SharedQuantizationSpec(only(OTHER, aten.linear.default))})


def shared_with_nothing(model: GraphModule) -> None:
    largest = only(model, aten.max.dim)
    annotate(largest, {largest.args[0]: SharedQuantizationSpec(only(model, aten.linear.default))})


def shared_in_a_circle(model: GraphModule) -> None:
    largest = only(model, aten.max.dim)
    edge = largest.args[0], largest
    annotate(largest, {largest.args[0]: SharedQuantizationSpec(edge)})


def no_spec(model: GraphModule) -> None:
    largest = only(model, aten.max.dim)
    annotate(largest, {largest.args[0]: "int8"})


def no_annotation(model: GraphModule) -> None:
    only(model, aten.max.dim).meta[Q_ANNOTATION_KEY] = {"output": ACT}


CASES: dict[Callable[[GraphModule], None], tuple[type[QSpecError], str, str, str]] = {
    integer_input: (AnnotationError, "input 'steps' of 'add' has a spec, but", "torch.int64", "leave this point out"),
    tuple_output: (AnnotationError, "the output of 'max_1' has a spec, but", "tuple", "one item of a tuple"),
    not_an_edge: (AnnotationError, "which is not an edge", "linear", "arguments of the annotated node as keys"),
    node_of_another_graph: (AnnotationError, "belongs to another graph", "linear", "after the last change"),
    stale: (AnnotationError, "'relu' was erased from the graph", "relu", "after the last change"),
    shared_with_another_graph: (SharingError, "carries no spec", "belongs to another graph", "refer to a point"),
    shared_with_nothing: (SharingError, "carries no spec", "has no annotation", "refer to a point"),
    shared_in_a_circle: (SharingError, "cycle", "", ""),
    no_spec: (AnnotationError, "not a quantization spec", "int8", "one of the four specs"),
    no_annotation: (AnnotationError, "is not a QuantizationAnnotation", "output", "store a QuantizationAnnotation"),
}


@pytest.mark.parametrize("mistake", CASES, ids=lambda mistake: mistake.__name__)
def test_mistakes_of_annotations(mistake: Callable[[GraphModule], None]) -> None:
    kind, problem, found, remedy = CASES[mistake]
    frozen = Frozen(EXPORTED)
    with pytest.raises(kind) as caught:
        prepare_pt2e(EXPORTED, Custom(mistake))
    frozen.check()
    error = caught.value
    assert type(error) is kind
    assert problem in error.problem
    assert found in str(error.found)
    assert remedy in error.remedy
    assert error.where.node == ("add" if mistake is integer_input else "max_1")
    assert error.where.module_path == "body"
    line = "return values + steps" if mistake is integer_input else "the line that messages name"
    assert line in str(error.where.source_line)
    assert "test_bad_annotations.py" in str(error.where.source_line)


def test_regions_already_quantized_are_kept_and_reported() -> None:
    x = torch.randn(8, 4)
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    prepared = prepare_pt2e(export(model, x), TableQuantizer(table()).set_module_name("0", CONFIG))
    prepared(x)
    file = io.BytesIO()
    torch.export.save(torch.export.export(convert_pt2e(prepared), (x,)), file)
    file.seek(0)
    loaded = torch.export.load(file).module()  # as from elsewhere: nothing but the graph is left
    assert isinstance(loaded, GraphModule)
    frozen = Frozen(loaded)
    again = prepare_pt2e(loaded, quantizer())
    found = [(entry.status.value, entry.row or entry.reason) for entry in coverage(again).layers]
    assert found == [
        ("skipped", "already quantized: operand weight is dequantized from integers"),
        ("quantized", "linear"),
    ]
    again(x)
    converted = convert_pt2e(again)
    frozen.check()
    assert len(calls(converted, torch.ops.quantized_decomposed.dequantize_per_channel.default)) == 2
    with torch.no_grad():
        assert torch.allclose(converted(x), model(x), atol=0.1)


def test_model_that_a_quantizer_prepared_is_refused() -> None:
    prepared = prepare_pt2e(OTHER, quantizer())
    frozen = Frozen(prepared)
    with pytest.raises(GraphError, match="prepared already") as caught:
        prepare_pt2e(prepared, quantizer())
    assert f"{len(observer_nodes(prepared))} live observers" in str(caught.value.found)
    frozen.check()


def test_the_end_of_the_graph_has_no_output_to_quantize() -> None:
    def annotate(model: GraphModule) -> None:
        (end,) = model.graph.find_nodes(op="output")
        end.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({end.args[0][0]: ACT}, ACT)

    exported = export(nn.Linear(4, 4), torch.randn(2, 4))
    frozen = Frozen(exported)
    with pytest.raises(AnnotationError, match="the output of 'output' has a spec") as caught:
        prepare_pt2e(exported, Custom(annotate))
    assert (caught.value.where.node, caught.value.found) == ("output", "the end of the graph")
    frozen.check()
