"""`convert_pt2e`: integers and dequantizes whose arithmetic is that of plain torch, bit for bit."""

import copy
import io
import warnings
from dataclasses import replace
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_support import (
    ACT,
    CONFIG,
    DYNAMIC,
    WEIGHT_ONLY,
    Frozen,
    Net,
    affine_parameters,
    at_activation,
    at_weight,
    aten,
    calls,
    decomposed,
    export,
    quantized,
    quantizer,
    simulate,
    symmetric_scales,
    targets,
)
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import (
    Q_ANNOTATION_KEY,
    GraphError,
    ObserverNeverRanWarning,
    QuantizationAnnotation,
    QuantizationSpec,
    Quantizer,
    SpecError,
    convert_pt2e,
    prepare_pt2e,
)
from qspec_core.observers import MinMaxObserver, PlaceholderObserver

DQ, DQ_CHANNEL = decomposed.dequantize_per_tensor.default, decomposed.dequantize_per_channel.default
Q, Q_CHANNEL = decomposed.quantize_per_tensor.default, decomposed.quantize_per_channel.default


def pair() -> tuple[Net, nn.Linear, nn.Linear]:
    first, second = nn.Linear(4, 6), nn.Linear(6, 3)
    model = Net(lambda m, x: m.second(F.relu(m.first(x))), first=first, second=second)
    return model, first, second


def test_linear_layers_compute_fake_quantized_products_bit_for_bit() -> None:
    model, first, second = pair()
    x = torch.randn(8, 4)
    with torch.no_grad():
        converted = quantized(export(model, x), (x,))
        inner = F.relu(first(x))  # calibration saw the float values
        y = F.relu(F.linear(at_activation(x), at_weight(first.weight), first.bias))
        y = simulate(y, *affine_parameters(inner), 0, 255)
        want = F.linear(y, at_weight(second.weight), second.bias)
        assert torch.equal(converted(x), want)


@pytest.mark.parametrize("fold", [True, False])
def test_convolution_computes_fake_quantized_products_bit_for_bit(fold: bool) -> None:
    conv = nn.Conv2d(3, 4, 3, padding=1, stride=2)
    x = torch.randn(2, 3, 9, 9)
    prepared = prepare_pt2e(export(conv, x), quantizer())
    prepared(x)
    converted = convert_pt2e(prepared, fold_quantize=fold)
    with torch.no_grad():
        want = F.conv2d(at_activation(x), at_weight(conv.weight), conv.bias, stride=2, padding=1)
        assert torch.equal(converted(x), want)


def test_per_tensor_and_unsigned_weights_and_narrow_ranges() -> None:
    x = torch.randn(8, 4)
    linear = nn.Linear(4, 6)
    weight = QuantizationSpec(torch.uint8, MinMaxObserver, 0, 100, torch.per_tensor_affine)
    act = replace(ACT, dtype=torch.int8, quant_min=-20, quant_max=30)
    config = replace(CONFIG, input_activation=act, weight=weight)
    converted = quantized(export(linear, x), (x,), config=config)
    with torch.no_grad():
        w = simulate(linear.weight, *affine_parameters(linear.weight, 0, 100), 0, 100)
        want = F.linear(simulate(x, *affine_parameters(x, -20, 30), -20, 30), w, linear.bias)
        assert torch.equal(converted(x), want)


def test_values_outside_the_calibrated_range_saturate() -> None:
    x = torch.rand(4, 4)
    linear = nn.Linear(4, 3)
    converted = quantized(export(linear, x), (x,))
    scale, zero_point = affine_parameters(x)
    with torch.no_grad():
        want = F.linear(simulate(x * 5 - 2, scale, zero_point, 0, 255), at_weight(linear.weight), linear.bias)
        assert torch.equal(converted(x * 5 - 2), want)


def test_weights_are_integers_and_the_float_ones_are_gone() -> None:
    model, first, second = pair()
    x = torch.randn(8, 4)
    exported = export(model, x)
    frozen = Frozen(exported)
    converted = quantized(exported, (x,))
    frozen.check()
    state = converted.state_dict()
    integers = [value for value in state.values() if value.dtype == torch.int8]
    assert [tuple(value.shape) for value in integers] == [(6, 4), (3, 6)]
    assert sorted(name for name in state if "weight" in name) == []
    assert {name for name in state if "bias" in name} == {"first.bias", "second.bias"}
    for value, layer in zip(integers, (first, second), strict=True):
        want = torch.round(layer.weight.detach() * (1.0 / symmetric_scales(layer.weight))).clamp(-128, 127)
        assert torch.equal(value.float(), want)
    assert len(calls(converted, Q_CHANNEL)) == 0
    assert dict(converted.named_parameters()).keys() == {"first.bias", "second.bias"}
    assert not [name for name, _ in converted.named_modules() if "activation_post_process" in name]


def test_unfolded_weights_stay_float_with_their_quantize() -> None:
    linear = nn.Linear(4, 6)
    x = torch.randn(8, 4)
    prepared = prepare_pt2e(export(linear, x), quantizer())
    prepared(x)
    converted = convert_pt2e(prepared, fold_quantize=False)
    assert len(calls(converted, Q_CHANNEL)) == 1
    assert converted.get_parameter("weight") is linear.weight
    assert torch.equal(converted(x), convert_pt2e(prepared)(x))


def test_flags_by_position_are_those_of_pt2e() -> None:
    """`convert_pt2e(model, use_reference_representation, fold_quantize)`."""
    x = torch.randn(8, 4)
    prepared = prepare_pt2e(export(nn.Linear(4, 6), x), quantizer())
    prepared(x)
    for reference, fold in ((False, False), (True, True)):
        named = convert_pt2e(prepared, use_reference_representation=reference, fold_quantize=fold)
        assert targets(convert_pt2e(prepared, reference, fold)) == targets(named)


@pytest.mark.parametrize("flag", ["use_reference_representation", "fold_quantize"])
def test_flag_that_is_not_a_bool(flag: str) -> None:
    prepared = prepare_pt2e(export(nn.Linear(4, 6), torch.randn(8, 4)), quantizer())
    frozen = Frozen(prepared)
    given: Any = {flag: quantizer()}
    with pytest.raises(ValueError, match=f"{flag} of convert_pt2e takes True or False") as caught:
        convert_pt2e(prepared, **given)
    assert isinstance(caught.value, SpecError)
    assert "TableQuantizer" in str(caught.value.found)
    assert f"{flag}=True" in caught.value.remedy
    frozen.check()


def test_weights_need_no_calibration() -> None:
    linear = nn.Linear(4, 6)
    x = torch.randn(8, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        converted = convert_pt2e(prepare_pt2e(export(linear, x), quantizer(WEIGHT_ONLY)))
    with torch.no_grad():
        assert torch.equal(converted(x), F.linear(x, at_weight(linear.weight), linear.bias))
    assert targets(converted) == [str(DQ_CHANNEL), "aten.linear.default"]


def test_dynamic_parameters_follow_each_input() -> None:
    linear = nn.Linear(4, 6)
    x = torch.randn(8, 4)
    converted = convert_pt2e(prepare_pt2e(export(linear, x), quantizer(DYNAMIC)))
    for given in (x, 100 * x, x.abs()):
        with torch.no_grad():
            parameters = affine_parameters(given, -128, 127)
            want = F.linear(simulate(given, *parameters, -128, 127), at_weight(linear.weight), linear.bias)
            assert torch.equal(converted(given), want)
    assert "quantized_decomposed.choose_qparams.tensor" in targets(converted)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_casts_round_to_the_narrower_float(dtype: torch.dtype) -> None:
    cast = QuantizationSpec(dtype, PlaceholderObserver)
    linear = nn.Linear(4, 6)
    x = torch.randn(8, 4)
    converted = quantized(export(linear, x), (x,), config=replace(CONFIG, weight=cast))
    with torch.no_grad():
        want = F.linear(at_activation(x), linear.weight.to(dtype).float(), linear.bias)
        assert torch.equal(converted(x), want)


def test_float32_spec_leaves_the_tensor_as_it_is() -> None:
    keep = QuantizationSpec(torch.float32, PlaceholderObserver)
    linear = nn.Linear(4, 6)
    x = torch.randn(8, 4)
    converted = quantized(export(linear, x), (x,), config=replace(CONFIG, input_activation=None, bias=keep))
    with torch.no_grad():
        assert torch.equal(converted(x), F.linear(x, at_weight(linear.weight), linear.bias))


def test_every_reader_has_its_own_dequantize() -> None:
    model = Net(lambda m, x: m.a(x) + m.b(x) + x, a=nn.Linear(4, 4), b=nn.Linear(4, 4))
    x = torch.randn(2, 4)
    converted = quantized(export(model, x), (x,))
    for node in calls(converted, DQ, DQ_CHANNEL):
        assert len(node.users) == 1
    (quantize,) = [n for n in calls(converted, Q) if n.args[0].op == "placeholder"]  # type: ignore[union-attr]  # nodes
    assert len(quantize.users) == 2
    assert all(node.meta["val"].dtype == torch.float32 for node in calls(converted, DQ, DQ_CHANNEL))
    assert quantize.meta["val"].dtype == torch.uint8


def test_reader_that_takes_a_tensor_twice_dequantizes_it_once() -> None:
    x = torch.randn(2, 4)
    model = Net(lambda m, x: m.after(torch.cat([m.layer(x)] * 2)), layer=nn.Linear(4, 4), after=nn.Linear(4, 4))
    converted = quantized(export(model, x), (x,))
    (cat,) = calls(converted, aten.cat.default)
    assert len(cat.all_input_nodes) == 1
    assert str(cat.all_input_nodes[0].target) == "quantized_decomposed.dequantize_per_tensor.default"


def test_keyword_arguments_and_several_outputs() -> None:
    def forward(m: Any, x: Tensor, *, scale: Tensor, extra: dict[str, Tensor]) -> Any:  # a tree of outputs
        y = m.linear(x)
        return {"y": y * scale, "rest": (y, extra["z"] + 1, 3)}

    linear = nn.Linear(4, 4)
    x, scale, extra = torch.randn(2, 4), torch.tensor(2.0), {"z": torch.randn(2)}
    exported = export(Net(forward, linear=linear), x, kwargs={"scale": scale, "extra": extra})
    prepared = prepare_pt2e(exported, quantizer())
    prepared(x, scale=scale, extra=extra)
    found = convert_pt2e(prepared)(x, extra=extra, scale=scale)
    with torch.no_grad():
        want = F.linear(at_activation(x), at_weight(linear.weight), linear.bias)
    assert torch.equal(found["rest"][0], want)
    assert torch.equal(found["y"], want * 2)
    assert torch.equal(found["rest"][1], extra["z"] + 1)
    assert found["rest"][2] == 3


def test_annotated_output_of_the_model_is_quantized_too() -> None:
    class Outputs(Quantizer):
        def annotate(self, model: GraphModule) -> GraphModule:
            (node,) = calls(model, aten.tanh.default)
            node.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=ACT)
            return model

        def validate(self, model: GraphModule) -> None:
            """Accept everything."""

    x = torch.randn(5)
    prepared = prepare_pt2e(export(Net(lambda _, x: torch.tanh(x)), x), Outputs())
    prepared(x)
    assert torch.equal(convert_pt2e(prepared)(x), at_activation(torch.tanh(x)))


def test_unused_nodes_and_unused_inputs_do_no_harm() -> None:
    exported = export(Net(lambda m, x, _: m.linear(x), linear=nn.Linear(4, 4)), torch.randn(2, 4), torch.randn(1))
    (linear,) = calls(exported, aten.linear.default)
    with exported.graph.inserting_after(linear):
        unused = exported.graph.call_function(aten.linear.default, linear.args)
    unused.meta = dict(linear.meta)
    exported.recompile()
    x = torch.randn(2, 4)
    converted = quantized(exported, (x, torch.randn(1)))
    assert targets(converted).count("aten.linear.default") == 1
    assert torch.allclose(converted(x, torch.randn(1)), exported(x, torch.randn(1)), atol=0.1)


def test_converted_module_exports_again_saves_loads_and_copies() -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3))
    x = torch.randn(8, 4)
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = export(model, x, dynamic_shapes=({0: batch},))
    converted = quantized(exported, (x,))
    want = converted(x)
    program = torch.export.export(converted, (x,), dynamic_shapes=({0: batch},))
    assert torch.equal(program.module()(x), want)
    stored = io.BytesIO()
    torch.export.save(program, stored)
    stored.seek(0)
    loaded = torch.export.load(stored).module()
    assert torch.equal(loaded(x), want)
    assert loaded(torch.randn(3, 4)).shape == (3, 3)
    copied = copy.deepcopy(converted)
    assert torch.equal(copied(x), want)
    assert copied.meta == converted.meta
    assert all(a.data_ptr() != b.data_ptr() for a, b in zip(copied.buffers(), converted.buffers(), strict=True))


def test_state_of_a_converted_module_loads_into_another() -> None:
    model, first, _ = pair()
    x = torch.randn(8, 4)
    one = quantized(export(model, x), (x,))
    state = {name: value.clone() for name, value in one.state_dict().items()}
    nn.init.normal_(first.weight)
    two = quantized(export(model, x), (x,))
    assert not torch.equal(one(x), two(x))
    two.load_state_dict(state)
    first_scales = [value for name, value in two.state_dict().items() if "scale" in name]
    assert torch.equal(first_scales[0], next(value for name, value in state.items() if "scale" in name))


def test_prepared_copy_calibrates_apart_and_keeps_its_groups() -> None:
    model, _, _ = pair()
    x = torch.randn(8, 4)
    prepared = prepare_pt2e(export(model, x), quantizer())
    copied = copy.deepcopy(prepared)
    copied(x)
    with pytest.warns(ObserverNeverRanWarning):
        convert_pt2e(prepared)
    assert torch.isfinite(convert_pt2e(copied)(x)).all()


def test_without_calibration_it_warns_once_and_names_the_points() -> None:
    model = nn.Sequential(*(nn.Linear(4, 4) for _ in range(7)))
    prepared = prepare_pt2e(export(model, torch.randn(2, 4)), quantizer())
    with pytest.warns(ObserverNeverRanWarning) as caught:
        convert_pt2e(prepared)
    (warning,) = caught
    assert str(warning.message).startswith("7 observers saw no data")
    assert " and 2 more" in str(warning.message)
    assert "linear in 0" in str(warning.message) or "activation_post_process_" in str(warning.message)
    assert warning.filename == __file__


def test_module_that_was_not_prepared_is_refused() -> None:
    x = torch.randn(2, 4)
    exported = export(nn.Linear(4, 4), x)
    cases: list[tuple[Any, str, str]] = [
        (nn.Linear(4, 4), "takes an exported graph module", "export it first"),
        (exported, "was not prepared", "prepare_pt2e"),
        (quantized(exported, (x,)), "converted already", "use the module as it is"),
    ]
    for module, problem, remedy in cases:
        with pytest.raises(GraphError, match=problem) as caught:
            convert_pt2e(module)
        assert remedy in caught.value.remedy


def test_prepared_module_without_observers_converts_to_itself() -> None:
    exported = export(Net(lambda _, x: torch.tanh(x)), torch.randn(3))
    prepared = prepare_pt2e(exported, quantizer(), allow_empty=True)
    x = torch.randn(3)
    assert torch.equal(convert_pt2e(prepared)(x), torch.tanh(x))


def test_metadata_of_the_float_graph_is_kept() -> None:
    model, _, _ = pair()
    x = torch.randn(8, 4)
    exported = export(model, x)
    converted = quantized(exported, (x,))
    before = {node.name: node.meta for node in calls(exported)}
    for node in calls(converted, aten.linear.default, aten.relu.default):
        for key in ("nn_module_stack", "stack_trace", "torch_fn", "from_node", "val"):
            assert node.meta.get(key) is before[node.name].get(key)
    for node in calls(converted, DQ):
        assert "nn_module_stack" in node.meta or node.args[0].args[0].op == "placeholder"  # type: ignore[union-attr]  # nodes


def test_guards_of_the_export_are_kept() -> None:
    model, _, _ = pair()
    converted = quantized(export(model, torch.randn(8, 4)), (torch.randn(8, 4),))
    with pytest.raises(AssertionError, match="Guard failed"):
        converted(torch.randn(9, 4))


def test_convert_leaves_the_prepared_module_usable() -> None:
    model, _, _ = pair()
    x = torch.randn(8, 4)
    prepared = prepare_pt2e(export(model, x), quantizer())
    prepared(x)
    code = prepared.code
    first = convert_pt2e(prepared)(x)
    assert prepared.code == code
    assert torch.equal(convert_pt2e(prepared)(x), first)
    torch.testing.assert_close(prepared(x), model(x))
