"""Linears whose weight alone is int8, or int4 in groups, against float64 arithmetic on the same integers."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from x86_support import FORMS, Lower

import qspec_core.ops
from qspec_core import NothingQuantizedError, convert_pt2e, prepare_pt2e, quantize
from qspec_core.patterns import Mode
from qspec_x86 import (
    BACKEND,
    LOWERING_KEY,
    X86InductorQuantizer,
    default_quantizer,
    get_weight_only_quantization_config,
    load_package,
    lower_eager,
    lower_portable,
    package,
)

ROWS = torch.export.Dim("rows", max=64)


def network(has_bias: bool = True) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(48, 33, bias=has_bias).eval().bfloat16()


def convert(model: nn.Module, *, mode: Mode = Mode.WEIGHT_ONLY) -> GraphModule:
    example = torch.randn(3, 48).bfloat16()
    exported = torch.export.export(model, (example,), dynamic_shapes=({0: ROWS},)).module()
    assert isinstance(exported, GraphModule)
    return convert_pt2e(prepare_pt2e(exported, default_quantizer(mode=mode, target="any")))


def reference(converted: GraphModule, x: Tensor, bias: Tensor | None) -> Tensor:
    (node,) = converted.graph.find_nodes(op="call_function", target=qspec_core.ops.DEQUANTIZE_PER_CHANNEL)
    weight, scale = (getattr(converted, str(argument.target)).double() for argument in node.args[:2])
    y: Tensor = x.double() @ (weight * scale[:, None]).t()
    return y if bias is None else y + bias.double()


@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("has_bias", [True, False])
def test_equals_float64_to_the_steps_of_bfloat16(has_bias: bool, lower: Lower) -> None:
    model = network(has_bias)
    converted = convert(model)
    lowered = lower(converted)
    assert list(lowered.meta[LOWERING_KEY].lowered.values()) == ["linear.weight_only"]
    assert not any("dequantize" in str(node.target) for node in lowered.graph.nodes)
    with torch.no_grad():
        for x in (torch.randn(3, 48), torch.randn(1, 48), torch.randn(48, 20).t(), torch.zeros(0, 48)):
            found, expected = lowered(x.bfloat16()), reference(converted, x.bfloat16(), model.bias)
            assert (found.dtype, found.shape) == (torch.bfloat16, expected.shape)
            torch.testing.assert_close(found.double(), expected, rtol=2.0**-6, atol=2.0**-7)


def test_the_converted_graph_runs_in_bfloat16() -> None:
    model = network()
    converted, x = convert(model), torch.randn(5, 48).bfloat16()
    with torch.no_grad():
        torch.testing.assert_close(converted(x), model(x), rtol=0.02, atol=0.02)


def test_the_package_equals_the_eager_form(tmp_path_factory: pytest.TempPathFactory) -> None:
    converted = convert(network())
    path = tmp_path_factory.mktemp("weight_only") / "linear.pt2"
    package(converted, (torch.randn(3, 48).bfloat16(),), path, "any")
    loaded, eager = load_package(path), lower_eager(converted, "any")
    with torch.no_grad():
        for rows in (3, 1, 64):
            x = torch.randn(rows, 48).bfloat16()
            torch.testing.assert_close(loaded(x), eager(x), rtol=2.0**-6, atol=2.0**-7)


# The kernel reads weights in blocks of 16, past the end of others: garbage, or a crash.
REFUSED = [(torch.float32, 1, 48, "bfloat16"), (torch.bfloat16, 5, 48, "5 rows"), (torch.bfloat16, 1, 40, "40 input")]


@pytest.mark.parametrize(("dtype", "rows", "features", "said"), REFUSED)
def test_what_is_slower_than_float_or_read_past_its_end_is_refused(
    dtype: torch.dtype, rows: int, features: int, said: str
) -> None:
    model, x = nn.Linear(features, 33).to(dtype), torch.randn(rows, features).to(dtype)
    with pytest.raises(NothingQuantizedError) as caught:
        quantize(model, (x,), backend=BACKEND, mode="weight only")
    assert said in str(caught.value)


def test_bfloat16_activations_are_not_quantized() -> None:
    exported = torch.export.export(network(), (torch.randn(3, 48).bfloat16(),)).module()
    assert isinstance(exported, GraphModule)
    with pytest.raises(NothingQuantizedError, match="bfloat16"):
        prepare_pt2e(exported, default_quantizer(mode=Mode.DYNAMIC))


def convert_to_four_bits(outputs: int, features: int, group: int) -> tuple[nn.Linear, GraphModule]:
    torch.manual_seed(0)
    model, example = nn.Linear(features, outputs).eval().bfloat16(), torch.randn(3, features).bfloat16()
    exported = torch.export.export(model, (example,), dynamic_shapes=({0: ROWS},)).module()
    assert isinstance(exported, GraphModule)
    quantizer = X86InductorQuantizer().set_global(get_weight_only_quantization_config(group))
    return model, convert_pt2e(prepare_pt2e(exported, quantizer))


def reference_of_groups(converted: GraphModule, x: Tensor, bias: Tensor) -> Tensor:
    # Groups that are whole rows have a scale for each channel.
    targets = qspec_core.ops.DEQUANTIZE_PER_GROUP, qspec_core.ops.DEQUANTIZE_PER_CHANNEL
    (node,) = (found for target in targets for found in converted.graph.find_nodes(op="call_function", target=target))
    weight, scale = (getattr(converted, str(argument.target)).double() for argument in node.args[:2])
    assert -8 <= float(weight.min()) < float(weight.max()) <= 7
    scale = scale.reshape(len(weight), -1)
    values = weight * scale.repeat_interleave(weight.shape[1] // scale.shape[1], 1)
    result: Tensor = x.double() @ values.t() + bias.double()
    return result


@torch.no_grad()
@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize(("outputs", "features", "group"), [(48, 64, 32), (64, 256, 128), (16, 256, 256)])
def test_four_bits_in_groups(outputs: int, features: int, group: int, lower: Lower) -> None:
    model, converted = convert_to_four_bits(outputs, features, group)
    lowered = lower(converted)
    assert list(lowered.meta[LOWERING_KEY].lowered.values()) == ["linear.weight_only"]
    targets = [str(node.target) for node in lowered.graph.nodes]
    assert targets.count("aten._weight_int4pack_mm_for_cpu.default") == 1
    assert targets.count("aten._convert_weight_to_int4pack_for_cpu.default") == int(lower is lower_portable)
    for x in (torch.randn(3, features), torch.randn(1, features), torch.randn(features, 5).t()):
        expected = reference_of_groups(converted, x.bfloat16(), model.bias)
        for found in (lowered(x.bfloat16()), converted(x.bfloat16())):
            assert found.dtype is torch.bfloat16
            # Scales, weights, the sum and the bias are each rounded to bfloat16, as the largest values are.
            atol = 2.0**-6 * float(expected.abs().max())
            torch.testing.assert_close(found.double(), expected, rtol=2.0**-6, atol=atol)


@torch.no_grad()
def test_the_package_of_four_bits_equals_the_eager_form(tmp_path: Path) -> None:
    _, converted = convert_to_four_bits(48, 64, 32)
    example = torch.randn(3, 64).bfloat16()
    loaded = load_package(package(converted, (example,), tmp_path / "linear.pt2", "any"))
    eager = lower_eager(converted, "any")
    for rows in (3, 1, 4):
        x = torch.randn(rows, 64).bfloat16()
        torch.testing.assert_close(loaded(x), eager(x), rtol=2.0**-6, atol=2.0**-7)


@pytest.mark.parametrize(("outputs", "features", "group"), [(33, 64, 32), (32, 80, 64), (32, 64, 16)])
def test_groups_that_the_kernel_lacks_are_refused(outputs: int, features: int, group: int) -> None:
    with pytest.raises(NothingQuantizedError, match=f"{outputs} by {features} weights in groups of {group}"):
        convert_to_four_bits(outputs, features, group)
