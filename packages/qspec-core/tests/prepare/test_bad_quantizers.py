"""Quantizers that do not fit and specs whose observers fail: type, place, source line, remedy, the model as it was."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from core_support import ACT, CONFIG, Frozen, aten, calls, export
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import (
    Q_ANNOTATION_KEY,
    AnnotationError,
    CalibrationError,
    DerivedQuantizationSpec,
    QSpecError,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SpecError,
    TableQuantizer,
    convert_pt2e,
    prepare_pt2e,
)
from qspec_core.observers import (
    AffineQuantizedMinMaxObserver,
    AffineQuantizedPlaceholderObserver,
    MappingType,
    MinMaxObserver,
    PerChannelMinMaxObserver,
    PerGroup,
)

X = torch.randn(2, 4)
PER_TENSOR = QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_tensor_symmetric)


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x)  # the line of the layer
        return y.relu()


class Model(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.block = Block()

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.block(x)
        return result


EXPORTED, OTHER = export(Model(), X), export(nn.Linear(4, 4), X)


class Layer(Quantizer):
    """Gives the weight of the linear layer a spec, its bias one that is derived, and edits the map of observers."""

    def __init__(
        self,
        weight: QuantizationSpec = PER_TENSOR,
        derive: Callable[[Any], Any] | None = None,  # Any: what a mistaken author takes and returns
        edit: Callable[[dict[Any, Any]], None] | None = None,  # the map holds what a mistaken author puts there
    ) -> None:
        self.weight, self.derive, self.edit = weight, derive, edit

    def annotate(self, model: GraphModule) -> GraphModule:
        (linear,) = calls(model, aten.linear.default)
        x, weight, bias = linear.all_input_nodes
        annotation = QuantizationAnnotation({x: ACT, weight: self.weight})
        if self.derive is not None:
            sources = [(x, linear), (weight, linear)]
            derived = DerivedQuantizationSpec(sources, self.derive, torch.int32, qscheme=torch.per_tensor_symmetric)
            annotation.input_qspec_map[bias] = derived
        linear.meta[Q_ANNOTATION_KEY] = annotation
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept everything."""

    def prepare_obs_or_fq_callback(self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[Any, nn.Module]) -> None:
        if self.edit is not None:
            self.edit(edge_or_node_to_obs_or_fq)


class ForgetsToReturn(Layer):
    def transform_for_annotation(self, model: GraphModule) -> GraphModule:
        return None  # type: ignore[return-value]  # the mistake


@pytest.mark.parametrize(
    ("given", "problem", "found", "remedy"),
    [
        (TableQuantizer, "takes a quantizer", "the class TableQuantizer", "make an instance"),
        (None, "takes a quantizer", "None", "make an instance"),
        (CONFIG, "takes a quantizer", "QuantizationConfig", "set_global(config)"),
        (ForgetsToReturn(), "ForgetsToReturn.transform_for_annotation returned no", "NoneType", "`return model`"),
    ],
    ids=["a class", "None", "a configuration", "forgets to return"],
)
def test_what_is_no_quantizer(given: Any, problem: str, found: str, remedy: str) -> None:
    frozen = Frozen(EXPORTED)
    with pytest.raises(AnnotationError, match=problem) as caught:
        prepare_pt2e(EXPORTED, given)
    assert found in str(caught.value.found)
    assert remedy in caught.value.remedy
    frozen.check()


def fails(**fields: object) -> nn.Module:
    raise ZeroDivisionError("an author's mistake")


def no_module(**fields: object) -> str:
    return "an observer"


def without_a_module(observers: dict[Any, Any]) -> None:
    (edge,) = [point for point in observers if isinstance(point, tuple) and point[0].op == "get_attr"]
    observers[edge] = "an observer"


def of_another_graph(observers: dict[Any, Any]) -> None:
    (linear,) = calls(OTHER, aten.linear.default)
    observers[linear] = MinMaxObserver()


PREPARE: dict[str, tuple[Layer, type[QSpecError], str, str, str | None]] = {
    "constructor fails": (
        Layer(QuantizationSpec(torch.int8, fails)),
        SpecError,
        "constructor of a spec's observer failed",
        "an author's mistake",
        "block_linear_weight",
    ),
    "constructor of something else": (
        Layer(QuantizationSpec(torch.int8, no_module)),  # type: ignore[arg-type]  # the mistake
        SpecError,
        "something that is not a module",
        "an observer",
        "block_linear_weight",
    ),
    "scheme of another observer": (
        Layer(QuantizationSpec(torch.int8, MinMaxObserver, -128, 127, torch.per_channel_symmetric, 0)),
        SpecError,
        "MinMaxObserver does not support this scheme",
        "per_channel_symmetric",
        "block_linear_weight",
    ),
    "callback leaves no module": (
        Layer(edit=without_a_module),
        AnnotationError,
        "left a point without a module",
        "an observer",
        "linear",
    ),
    "callback adds a point": (
        Layer(edit=of_another_graph),
        AnnotationError,
        "added a point that the graph does not have",
        "linear",
        None,
    ),
}


@pytest.mark.parametrize("name", PREPARE)
def test_mistakes_that_prepare_finds(name: str) -> None:
    quantizer, kind, problem, found, node = PREPARE[name]
    frozen = Frozen(EXPORTED)
    with pytest.raises(kind, match=problem) as caught:
        prepare_pt2e(EXPORTED, quantizer)
    frozen.check()
    error = caught.value
    assert type(error) is kind
    assert found in str(error.found)
    assert error.remedy
    if node is not None:
        check_place(error, node)


def check_place(error: QSpecError, node: str) -> None:
    assert (error.where.node, error.where.module_path) == (node, "block.linear")
    assert "the line of the layer" in str(error.where.source_line)


def several(observers: Any) -> tuple[Tensor, Tensor]:
    return torch.ones(3), torch.zeros(3)


def not_a_number(observers: Any) -> tuple[Tensor, Tensor]:
    return torch.tensor([torch.nan]), torch.zeros(1)


def zero(observers: Any) -> tuple[Tensor, Tensor]:
    return torch.zeros(1), torch.zeros(1)


@pytest.mark.parametrize(
    ("derive", "problem", "found"),
    [
        (lambda observers: observers[9], "could not compute scale and zero point", "IndexError"),
        (lambda observers: None, "could not compute scale and zero point", "TypeError"),
        (several, "several scales", "3 scales"),
        (not_a_number, "not finite and positive", "nan"),
        (zero, "not finite and positive", "0.0"),
    ],
    ids=["fails", "returns nothing", "several scales", "not a number", "zero"],
)
def test_derivation_that_gives_no_parameters(derive: Callable[[Any], Any], problem: str, found: str) -> None:
    frozen = Frozen(EXPORTED)
    prepared = prepare_pt2e(EXPORTED, Layer(derive=derive))
    prepared(X)
    observed = Frozen(prepared)
    with pytest.raises(SpecError, match=problem) as caught:
        convert_pt2e(prepared)
    assert found in str(caught.value.found)
    assert "derive" in caught.value.remedy
    assert str(caught.value.where.node).startswith("activation_post_process")
    check_place(caught.value, str(caught.value.where.node))
    observed.check()
    frozen.check()


def test_channel_axis_that_the_tensor_lacks() -> None:
    frozen = Frozen(EXPORTED)
    weight = QuantizationSpec(torch.int8, PerChannelMinMaxObserver, -128, 127, torch.per_channel_symmetric, 5)
    prepared = prepare_pt2e(EXPORTED, Layer(weight))
    with pytest.raises(CalibrationError, match="the observed tensor has 2 dimensions") as caught:
        prepared(X)
    check_place(caught.value, "block_linear_weight")
    assert "ch_axis=5" in str(caught.value.found)
    assert "correct ch_axis" in caught.value.remedy
    frozen.check()


@pytest.mark.parametrize("is_dynamic", [False, True], ids=["static", "dynamic"])
def test_granularity_that_does_not_fit_the_tensor(is_dynamic: bool) -> None:
    """Found when the model runs on calibration data, or when it is converted."""

    def make(**fields: object) -> nn.Module:
        scheme = MappingType.SYMMETRIC, torch.int8, PerGroup(3)
        return AffineQuantizedPlaceholderObserver(*scheme) if is_dynamic else AffineQuantizedMinMaxObserver(*scheme)

    prepared = prepare_pt2e(EXPORTED, Layer(QuantizationSpec(torch.int8, make)))
    if is_dynamic:
        prepared(X)
    with pytest.raises(SpecError, match="granularity does not fit the tensor's shape") as caught:
        convert_pt2e(prepared) if is_dynamic else prepared(X)
    check_place(caught.value, "block_linear_weight")
