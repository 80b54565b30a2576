"""prepare: an observed copy, with the caller's module exactly as it was."""

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_support import (
    ACT,
    CONFIG,
    Custom,
    Frozen,
    Net,
    aten,
    calls,
    export,
    quantizer,
    settled,
    table,
)
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from qspec_core import (
    Q_ANNOTATION_KEY,
    AnnotationError,
    CalibrationError,
    DerivedQuantizationSpec,
    FixedQParamsQuantizationSpec,
    GraphError,
    NothingQuantizedError,
    QSpecError,
    QuantizationAnnotation,
    SharedQuantizationSpec,
    SharingError,
    TableQuantizer,
    TrainingModeError,
    convert_pt2e,
    prepare_pt2e,
)
from qspec_core.graph import is_observer, observer_nodes
from qspec_core.observers import FixedQParamsObserver


def network() -> nn.Module:
    return settled(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True), nn.Flatten(), nn.Linear(16, 5))
    )


X = torch.randn(2, 3, 4, 4)


@pytest.fixture(scope="module", name="exported")
def _exported() -> GraphModule:
    return export(network(), X)


def test_model_is_unchanged_and_its_weights_are_shared(exported: GraphModule) -> None:
    frozen = Frozen(exported)
    prepared = prepare_pt2e(exported, quantizer())
    prepared(X)
    frozen.check()
    assert prepared.get_parameter("4.weight") is exported.get_parameter("4.weight")
    assert prepared.get_parameter("4.bias").data_ptr() == exported.get_parameter("4.bias").data_ptr()
    convert_pt2e(prepared)
    frozen.check()


def test_observers_are_on_the_device_of_what_they_observe() -> None:
    exported = export(network().to("meta"), X.to("meta"))
    observers = [observer for _, observer in observer_nodes(prepare_pt2e(exported, quantizer()))]
    assert observers
    assert {buffer.device.type for observer in observers for buffer in observer.buffers()} == {"meta"}


@pytest.mark.parametrize("error", [ValueError, QSpecError])
@pytest.mark.parametrize("step", ["transform_for_annotation", "annotate", "validate", "prepare_obs_or_fq_callback"])
def test_model_is_unchanged_when_the_quantizer_raises(exported: GraphModule, error: type, step: str) -> None:
    def fail(model: GraphModule, *_: object) -> GraphModule:
        for node in model.graph.nodes:
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=ACT)
        model.register_buffer("left_over", torch.ones(1))
        raise ValueError("no") if error is ValueError else QSpecError("no", remedy="none")

    frozen = Frozen(exported)
    broken = quantizer()
    setattr(broken, step, fail)
    with pytest.raises(error, match="no"):
        prepare_pt2e(exported, broken)
    frozen.check()


def test_prepared_model_computes_what_the_float_model_does(exported: GraphModule) -> None:
    prepared = prepare_pt2e(exported, quantizer())
    torch.testing.assert_close(prepared(X), exported(X), rtol=1e-5, atol=1e-5)


def test_observers_have_the_fields_name_and_know_their_place(exported: GraphModule) -> None:
    prepared = prepare_pt2e(exported, quantizer())
    found = observer_nodes(prepared)
    assert [node.target for node, _ in found] == [f"activation_post_process_{i}" for i in range(len(found))]
    assert len(found) == 4  # the inputs and weights of two layers
    assert all(is_observer(module) for _, module in found)
    places = [module.where.node for _, module in found]  # type: ignore[union-attr]  # set by prepare
    assert len(set(places)) == 4
    for node, _ in found:
        assert node.meta["val"] is node.all_input_nodes[0].meta["val"]


def test_points_of_one_group_share_one_observer() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        y = torch.cat([m.a(x), m.b(x)], 1)
        return m.c(y)  # type: ignore[no-any-return]  # submodules by name

    layers = {"a": nn.Linear(4, 3), "b": nn.Linear(4, 3), "c": nn.Linear(6, 2)}
    prepared = prepare_pt2e(export(Net(forward, **layers), torch.randn(2, 4)), quantizer())
    (cat,) = calls(prepared, aten.cat.default)
    a, b = cat.all_input_nodes
    (after,) = cat.users
    modules = [prepared.get_submodule(str(node.target)) for node in (a, b, after)]
    assert modules[0] is modules[1] is modules[2]
    x = torch.randn(2, 4)
    prepared(x)
    both = torch.cat([layers["a"](x), layers["b"](x)])
    assert torch.equal(modules[0].get_buffer("min_val"), both.min())
    assert torch.equal(modules[0].get_buffer("max_val"), both.max())


def test_one_observer_serves_all_readers_of_a_tensor_that_agree() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        return m.a(x) + m.b(x)  # type: ignore[no-any-return]  # as above

    model = Net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    same = prepare_pt2e(export(model, torch.randn(2, 4)), quantizer())
    a, b = calls(same, aten.linear.default)
    assert a.args[0] is b.args[0]
    wider = replace(CONFIG, input_activation=replace(ACT, quant_max=127))
    apart = prepare_pt2e(export(model, torch.randn(2, 4)), quantizer().set_module_name("b", wider))
    a, b = calls(apart, aten.linear.default)
    assert a.args[0] is not b.args[0]


def test_edge_that_differs_from_its_producers_output_is_observed_after_it() -> None:
    narrow = replace(ACT, quant_max=127)

    def annotate(model: GraphModule) -> None:
        first, second = calls(model, aten.linear.default)
        first.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=ACT)
        second.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({first: narrow})

    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    prepared = prepare_pt2e(export(model, torch.randn(2, 4)), Custom(annotate))
    _, second = calls(prepared, aten.linear.default)
    near = second.args[0]
    assert isinstance(near, Node)
    far = near.args[0]
    assert isinstance(far, Node)
    limits = [prepared.get_submodule(str(node.target)).quant_max for node in (near, far)]
    assert limits == [127, 255]
    assert far.args[0] is calls(prepared, aten.linear.default)[0]


def test_mutated_buffers_are_cloned_and_others_shared() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        m.count.add_(1)
        m.cache[:, 1:3].copy_(x[:, 1:3])
        return m.linear(x) + m.cache + m.fixed + m.count  # type: ignore[no-any-return]  # as above

    buffers = {"count": torch.zeros(1), "cache": torch.zeros(2, 4), "fixed": torch.ones(4)}
    exported = export(Net(forward, linear=nn.Linear(4, 4), **buffers), torch.randn(2, 4))
    prepared = prepare_pt2e(exported, quantizer())
    x = torch.randn(2, 4)
    prepared(x)
    prepared(x)
    assert prepared.get_buffer("count").item() == 2
    assert torch.equal(prepared.get_buffer("cache")[:, 1:3], x[:, 1:3])
    assert exported.get_buffer("count").item() == 0
    assert not exported.get_buffer("cache").any()
    assert prepared.get_buffer("fixed").data_ptr() == exported.get_buffer("fixed").data_ptr()
    converted = convert_pt2e(prepared)
    converted(x)
    # Calibration leaves no trace in the converted graph: it starts from the model's own values.
    assert (converted.get_buffer("count").item(), prepared.get_buffer("count").item()) == (1, 2)
    again = convert_pt2e(prepared)
    assert again.get_buffer("count").item() == 0
    assert not again.get_buffer("cache").any()


def test_annotations_made_before_are_moved_to_the_copy() -> None:
    exported = export(nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4)), torch.randn(2, 4))
    first, second = calls(exported, aten.linear.default)
    (relu,) = calls(exported, aten.relu.default)
    x, b = first.args[0], first.args[2]
    assert isinstance(x, Node)
    assert isinstance(b, Node)
    derived = DerivedQuantizationSpec([(x, first), relu], bias_parameters, torch.int32)
    first.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({x: ACT, b: derived})
    relu.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=SharedQuantizationSpec((relu, second)))
    second.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({relu: ACT})
    frozen = Frozen(exported)
    prepared = prepare_pt2e(exported, Custom(lambda _: None))
    frozen.check()
    assert first.meta[Q_ANNOTATION_KEY].input_qspec_map[b] is derived
    observed = {node.all_input_nodes[0].name: observer for node, observer in observer_nodes(prepared)}
    assert set(observed) == {x.name, b.name, relu.name}
    sources: Any = observed[b.name].obs_or_fqs  # a tuple of observers
    assert sources == (observed[x.name], observed[relu.name])
    prepared(torch.randn(2, 4))
    converted = convert_pt2e(prepared)
    product = bias_parameters(sources)[0].item()
    assert product in [node.args[1] for node in calls(converted) if "dequantize" in str(node.target)]


def bias_parameters(observers: Any) -> tuple[Tensor, Tensor]:  # observers of any stack
    scales = [observer.calculate_qparams()[0] for observer in observers]
    return scales[0] * scales[1], torch.zeros(1, dtype=torch.int64)


def test_fixed_parameters_get_a_fixed_observer() -> None:
    spec = FixedQParamsQuantizationSpec(torch.uint8, 1 / 256, 0, 0, 255)

    def annotate(model: GraphModule) -> None:
        (node,) = calls(model, aten.sigmoid.default)
        node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=spec)

    x = torch.randn(3, 4)
    prepared = prepare_pt2e(export(Net(lambda _, x: torch.sigmoid(x)), x), Custom(annotate))
    ((_, observer),) = observer_nodes(prepared)
    assert isinstance(observer, FixedQParamsObserver)
    converted = convert_pt2e(prepared)  # needs no calibration, so it warns of none
    assert torch.equal(converted(x), torch.round(torch.sigmoid(x) * 256).clamp(0, 255) / 256)


def test_callback_may_edit_the_observers(exported: GraphModule) -> None:
    class Fixed(TableQuantizer):
        def prepare_obs_or_fq_callback(self, model: GraphModule, edge_or_node_to_obs_or_fq: dict[Any, Any]) -> None:
            for point in edge_or_node_to_obs_or_fq:
                edge_or_node_to_obs_or_fq[point] = FixedQParamsObserver(0.5, 3, torch.uint8)

    prepared = prepare_pt2e(exported, Fixed(table()).set_global(CONFIG))
    assert {type(observer) for _, observer in observer_nodes(prepared)} == {FixedQParamsObserver}


def test_nothing_matched_is_an_error_unless_allowed() -> None:
    exported = export(Net(lambda _, x: torch.tanh(x)), torch.randn(3))
    frozen = Frozen(exported)
    with pytest.raises(NothingQuantizedError, match="matched nothing in the model") as caught:
        prepare_pt2e(exported, quantizer())
    assert "aten.tanh.default: no row" in str(caught.value.found)
    frozen.check()
    assert observer_nodes(prepare_pt2e(exported, quantizer(), allow_empty=True)) == []
    assert observer_nodes(prepare_pt2e(exported, TableQuantizer(table()))) == []
    assert observer_nodes(prepare_pt2e(exported, Custom(lambda _: None))) == []


def test_prepared_model_is_refused_again(exported: GraphModule) -> None:
    with pytest.raises(GraphError, match="prepared already") as caught:
        prepare_pt2e(prepare_pt2e(exported, quantizer()), quantizer())
    assert caught.value.where.node == "activation_post_process_0"
    assert "4 live observers" in str(caught.value.found)
    assert "convert_pt2e" in caught.value.remedy


def test_plain_module_exported_program_and_symbolic_trace_are_refused() -> None:
    model = network()
    cases: list[tuple[Any, str, str]] = [
        (model, "takes an exported graph module", "torch.export.export(model.eval()"),
        (torch.export.export(model, (X,)), "takes an exported graph module", "program.module()"),
        (torch.fx.symbolic_trace(nn.Sequential(nn.Linear(2, 2))), "was not made by torch.export", "export the model"),
        (None, "takes an exported graph module", "export it first"),
    ]
    for module, problem, remedy in cases:
        with pytest.raises(GraphError, match=problem) as caught:
            prepare_pt2e(module, quantizer())
        assert remedy in caught.value.remedy


@pytest.mark.parametrize(
    ("layer", "flag"),
    [(nn.BatchNorm2d(3), "training=True"), (nn.Dropout(0.5), "train=True"), (nn.Dropout2d(0.5), "train=True")],
    ids=str,
)
def test_model_traced_in_training_mode_is_refused(layer: nn.Module, flag: str) -> None:
    model = nn.Sequential(nn.Conv2d(3, 3, 1), nn.Sequential(layer)).train()
    module = torch.export.export(model, (X,)).module()
    assert isinstance(module, GraphModule)
    with pytest.raises(GraphError, match="traced in training mode") as caught:
        prepare_pt2e(module, quantizer())
    assert caught.value.where.module_path == "1.0"
    assert caught.value.where.node
    assert caught.value.found == flag
    assert "model.eval()" in caught.value.remedy


@pytest.mark.parametrize("deep", [False, True])
def test_mode_switches_raise_and_name_what_to_call(exported: GraphModule, deep: bool) -> None:
    prepared = prepare_pt2e(exported, quantizer())
    prepared(X)
    for module in (prepared, convert_pt2e(prepared)):
        tested = copy.deepcopy(copy.deepcopy(module)) if deep else module
        for switch in (tested.train, tested.eval):
            with pytest.raises(TrainingModeError, match="no effect on operators") as caught:
                switch()
            assert isinstance(caught.value, NotImplementedError)
            assert "move_exported_model_to_train" in caught.value.remedy
            assert "move_exported_model_to_eval" in caught.value.remedy


def test_bad_annotations_are_named_and_leave_the_model_alone(exported: GraphModule) -> None:
    def not_an_edge(model: GraphModule) -> None:
        conv, linear = calls(model, aten.conv2d.default, aten.linear.default)
        linear.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation({conv: ACT})

    def no_spec(model: GraphModule) -> None:
        conv, linear = calls(model, aten.conv2d.default, aten.linear.default)
        linear.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=SharedQuantizationSpec(conv))

    frozen = Frozen(exported)
    for annotate, kind in ((not_an_edge, AnnotationError), (no_spec, SharingError)):
        with pytest.raises(kind) as caught:
            prepare_pt2e(exported, Custom(annotate))
        assert isinstance(caught.value, QSpecError)
        assert (caught.value.where.node, caught.value.where.module_path) == ("linear", "4")
        frozen.check()


def test_values_that_are_not_finite_name_the_node(exported: GraphModule) -> None:
    prepared = prepare_pt2e(exported, quantizer())
    for wrong in (float("nan"), float("inf"), -float("inf")):
        x = X.clone()
        x[0, 0, 0, 0] = wrong
        with pytest.raises(CalibrationError, match="not finite: 1 of 96") as caught:
            prepared(x)
        assert caught.value.where.node == "input_1"


def test_weight_observer_names_its_weight() -> None:
    linear = nn.Linear(2, 2)
    model = nn.Sequential(linear)
    with torch.no_grad():
        linear.weight[0, 0] = float("nan")
    prepared = prepare_pt2e(export(model, torch.randn(1, 2)), quantizer())
    with pytest.raises(CalibrationError) as caught:
        prepared(torch.randn(1, 2))
    assert "weight" in str(caught.value.where.node)


def test_dynamic_batch_is_calibrated_with_any_size() -> None:
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = export(nn.Linear(4, 3), torch.randn(2, 4), dynamic_shapes=({0: batch},))
    prepared = prepare_pt2e(exported, quantizer())
    for size in (1, 5, 64):
        prepared(torch.randn(size, 4))
    converted = convert_pt2e(prepared)
    assert converted(torch.randn(7, 4)).shape == (7, 3)
    with pytest.raises(AssertionError, match="Guard failed"):
        prepare_pt2e(export(nn.Linear(4, 3), torch.randn(2, 4)), quantizer())(torch.randn(3, 4))


def test_two_prepared_copies_do_not_disturb_each_other(exported: GraphModule) -> None:
    first, second = (prepare_pt2e(exported, quantizer()) for _ in range(2))
    first(X)
    assert all(not observer.has_observed for _, observer in observer_nodes(second))


def test_dropout_stays_free_of_observers() -> None:
    model = Net(lambda m, x: m.b(F.dropout(m.a(x), 0.5, False)), a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    prepared = prepare_pt2e(export(model, torch.randn(2, 4)), quantizer())
    assert calls(prepared, aten.dropout.default) == []
