"""Linears whose weight alone is int8, against float64 arithmetic on the same integers."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule

import qspec_core.ops
from qspec_core import NothingQuantizedError, convert_pt2e, prepare_pt2e, quantize
from qspec_core.patterns import Mode
from qspec_x86 import BACKEND, LOWERING_KEY, default_quantizer, load_package, lower_eager, lower_portable, package

FORMS = [lower_eager, lower_portable]
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
def test_equals_float64_to_the_steps_of_bfloat16(has_bias: bool, lower: Callable[..., Any]) -> None:
    model = network(has_bias)
    converted = convert(model)
    lowered = lower(converted, "any")
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
