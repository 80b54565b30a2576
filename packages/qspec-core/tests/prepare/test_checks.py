"""Models and calibrations that a step refuses: error class, place, source line, remedy, and an unchanged model."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_support import ACT, CONFIG, Frozen, aten, calls, export, quantizer, table
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import (
    Q_ANNOTATION_KEY,
    AnnotationError,
    CalibrationError,
    ComposableQuantizer,
    GraphError,
    ObserverNeverRanWarning,
    QSpecError,
    QuantizationAnnotation,
    Quantizer,
    TableQuantizer,
    annotate_output_qspec,
    calibrate,
    convert_pt2e,
    prepare_pt2e,
)

X = torch.randn(2, 4)


class Block(nn.Module):
    """Operators of every kind that may be traced in training mode, each on a line of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.drop = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.log(self.linear(x).abs())  # the line of the logarithm
        y = self.norm(y)  # the line of the batch norm
        result: Tensor = self.drop(y)  # the line of dropout
        return result


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x)
        return result


class Named(Quantizer):
    """Gives the output of the logarithm a spec."""

    def __init__(self, quant_max: int = 255) -> None:
        self.quant_max = quant_max

    def annotate(self, model: GraphModule) -> GraphModule:
        (log,) = calls(model, aten.log.default)
        spec = ACT if self.quant_max == 255 else type(ACT)(ACT.dtype, ACT.observer_or_fake_quant_ctr, 0, self.quant_max)
        annotate_output_qspec(log, spec)
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept everything."""


def training(*, norm: bool, drop: bool) -> GraphModule:
    model = Model().eval()
    model.block.norm.train(norm)
    model.block.drop.train(drop)
    module = torch.export.export(model, (X,)).module()
    assert isinstance(module, GraphModule)
    return module


def batch_norm_in_training() -> tuple[GraphModule, Callable[[GraphModule], object]]:
    return training(norm=True, drop=False), prepare_by_table


def dropout_in_training() -> tuple[GraphModule, Callable[[GraphModule], object]]:
    return training(norm=False, drop=True), prepare_by_table


def prepare_by_table(module: GraphModule) -> object:
    return prepare_pt2e(module, quantizer())


def prepared_already() -> tuple[GraphModule, Callable[[GraphModule], object]]:
    return prepare_pt2e(export(Model(), X), Named()), prepare_by_table


def annotated_twice() -> tuple[GraphModule, Callable[[GraphModule], object]]:
    return export(Model(), X), lambda module: prepare_pt2e(module, ComposableQuantizer([Named(), Named(127)]))


def values_not_finite() -> tuple[GraphModule, Callable[[GraphModule], object]]:
    return prepare_pt2e(export(Model(), X), Named()), lambda module: calibrate(module, [(X,), (X * torch.nan,)])


CASES: dict[Callable[[], Any], tuple[type[QSpecError], str, str, str, str, str]] = {
    batch_norm_in_training: (
        GraphError,
        "traced in training mode",
        "batch_norm",
        "block.norm",
        "the line of the batch norm",
        "model.eval()",
    ),
    dropout_in_training: (
        GraphError,
        "traced in training mode",
        "dropout",
        "block.drop",
        "the line of dropout",
        "model.eval()",
    ),
    prepared_already: (
        GraphError,
        "prepared already",
        "activation_post_process_0",
        "block",
        "the line of the logarithm",
        "convert_pt2e",
    ),
    annotated_twice: (
        AnnotationError,
        "Named changes an annotation of an earlier quantizer",
        "log",
        "block",
        "the line of the logarithm",
        "on_conflict",
    ),
    values_not_finite: (
        CalibrationError,
        "not finite",
        "log",
        "block",
        "the line of the logarithm",
        "",
    ),
}


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.__name__)
def test_place_remedy_and_the_model_as_it_was(case: Callable[[], Any]) -> None:
    kind, problem, node, path, line, remedy = CASES[case]
    module, step = case()
    frozen = Frozen(module)
    with pytest.raises(kind) as caught:
        step(module)
    error = caught.value
    assert type(error) is kind
    assert problem in error.problem
    assert (error.where.node, error.where.module_path) == (node, path)
    assert line in str(error.where.source_line)
    assert "test_checks.py" in str(error.where.source_line)
    assert error.remedy
    assert remedy in error.remedy
    if case is not values_not_finite:  # its first batch was observed, and is kept
        frozen.check()


@pytest.mark.parametrize(
    "wrong",
    [torch.randn(3, 4), torch.randn(2, 5), X.double(), X.to("meta")],
    ids=["batch", "features", "dtype", "device"],
)
def test_batch_of_another_kind_leaves_what_was_observed(wrong: Tensor) -> None:
    exported = export(Model(), X)
    prepared = prepare_pt2e(exported, quantizer())
    before = Frozen(exported)
    calibrate(prepared, [(X,)])
    state = {name: value.clone() for name, value in prepared.state_dict().items()}
    with pytest.raises(CalibrationError, match="calibration batch 1 does not fit") as caught:
        calibrate(prepared, [(X,), (wrong,)])
    assert "float" in str(caught.value.found)
    assert caught.value.__cause__ is not None
    assert all(torch.equal(value, state[name]) for name, value in prepared.state_dict().items())
    before.check()


def test_no_calibration_at_all_is_warned_of_with_the_places() -> None:
    exported = export(Model(), X)
    before = Frozen(exported)
    with pytest.warns(ObserverNeverRanWarning, match=r"1 observers saw no data.*activation_post_process_0 in block"):
        convert_pt2e(prepare_pt2e(exported, Named()))
    before.check()


def test_node_that_a_quantizer_annotated_before_is_left_to_it() -> None:
    """A table quantizer takes no node that carries an annotation: the first word stands."""
    exported = export(Model(), X)
    before = Frozen(exported)
    own = QuantizationAnnotation(output_qspec=ACT)

    class First(Quantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            (linear,) = calls(model, aten.linear.default)
            linear.meta[Q_ANNOTATION_KEY] = own
            return model

        def validate(self, model: GraphModule) -> None:
            """Accept everything."""

    both = ComposableQuantizer([First(), TableQuantizer(table()).set_global(CONFIG)])
    prepared = prepare_pt2e(exported, both, allow_empty=True)
    assert len([node for node in prepared.graph.nodes if "activation_post_process" in node.name]) == 1
    before.check()
