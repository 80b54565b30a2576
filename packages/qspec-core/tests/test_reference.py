"""The integer-arithmetic form: equal to NumPy integers, and at most a step from the converted graph."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from core_support import ACT, CONFIG, DYNAMIC, WEIGHT_ONLY, Frozen, Net, aten, calls, decomposed, export, quantizer
from torch import Tensor, nn
from torch.fx import GraphModule

from qspec_core import (
    Q_ANNOTATION_KEY,
    EmbeddingQuantizer,
    QuantizationAnnotation,
    Quantizer,
    convert_pt2e,
    prepare_pt2e,
)
from qspec_core.patterns import Outputs

Q = decomposed.quantize_per_tensor.default


def forms(
    model: nn.Module, *x: Tensor, config: Any = CONFIG, outputs: Outputs = Outputs.DEMAND, **options: Any
) -> tuple[GraphModule, GraphModule]:
    """The converted graph and its integer form."""
    prepared = prepare_pt2e(export(model, *x), quantizer(config, outputs))
    with torch.no_grad():
        prepared(*x)
    return convert_pt2e(prepared, **options), convert_pt2e(prepared, use_reference_representation=True, **options)


def left(module: GraphModule) -> set[str]:
    return {str(node.target) for node in calls(module) if "quantized_decomposed" in str(node.target)}


def block(m: Any, x: Tensor) -> Tensor:  # submodules by name
    y = torch.relu(m.a(x))
    y = torch.relu(y + m.b(y))
    y = F.max_pool2d(y, 2)
    return m.head(y.flatten(1))  # type: ignore[no-any-return]  # as above


def network() -> Net:
    convs = {"a": nn.Conv2d(3, 8, 3, padding=1, stride=2), "b": nn.Conv2d(8, 8, 3, padding=2, dilation=2, groups=4)}
    return Net(block, head=nn.Linear(8 * 16, 5), **convs)


def test_linear_is_exactly_what_numpy_integers_give() -> None:
    torch.manual_seed(0)
    first, second = nn.Linear(7, 6), nn.Linear(6, 4)
    x = torch.randn(5, 7)
    model = Net(lambda m, x: m.second(torch.relu(m.first(x))), first=first, second=second)
    converted, reference = forms(model, x)
    steps = [(float(node.args[1]), int(node.args[2])) for node in calls(converted, Q)]  # type: ignore[arg-type]  # numbers
    scales = [converted.get_buffer(f"_scale_{i}").numpy() for i in range(2)]
    weights = [converted.get_buffer(f"_frozen_param{i}").numpy().astype(np.int64) for i in range(2)]
    (s0, z0), (s1, z1) = steps
    q = np.clip(np.rint(x.numpy() * np.float32(1.0 / s0)) + z0, 0, 255).astype(np.int64) - z0
    products = [(np.float32(s) * scale).astype(np.float32) for s, scale in zip((s0, s1), scales, strict=True)]
    biases = [
        np.rint(layer.bias.detach().numpy() / p).astype(np.int64)
        for layer, p in zip((first, second), products, strict=True)
    ]
    total = np.maximum(q @ weights[0].T + biases[0], 0)
    factor = (products[0] / np.float32(s1)).astype(np.float32)
    inner = np.clip(np.rint(total.astype(np.float32) * factor) + z1, 0, 255).astype(np.int64) - z1
    want = (inner @ weights[1].T + biases[1]).astype(np.float32) * products[1]
    with torch.no_grad():
        np.testing.assert_array_equal(reference(x).numpy(), want)


@pytest.mark.parametrize("fold", [True, False])
@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8])
def test_network_in_integers_is_a_step_from_the_converted_one(dtype: torch.dtype, fold: bool) -> None:
    torch.manual_seed(1)
    x = torch.randn(2, 3, 16, 16)
    low = 0 if dtype is torch.uint8 else -128
    act = replace(ACT, dtype=dtype, quant_min=low, quant_max=low + 255)
    config = replace(CONFIG, input_activation=act, output_activation=act)
    converted, reference = forms(network(), x, config=config, outputs=Outputs.ALWAYS, fold_quantize=fold)
    assert left(reference) == set()
    last = max(float(node.args[1]) for node in calls(converted, Q))  # type: ignore[arg-type]  # numbers
    weight = max(float(v.max()) for name, v in converted.state_dict().items() if "_scale_" in name)
    with torch.no_grad():
        want, found = converted(x), reference(x)
    # A value on the edge between two integers may round either way; it reaches an output through one weight.
    assert float((want - found).abs().max()) <= 4 * last * 127 * weight
    assert float((want - found).abs().mean()) < 0.1 * last
    integer = [node.meta["val"].dtype for node in calls(reference, aten.conv2d.default, aten.linear.default)]
    assert integer == [torch.int32] * 3
    (pool,) = calls(reference, aten.max_pool2d.default)
    assert pool.meta["val"].dtype is dtype


@pytest.mark.parametrize(
    ("model", "shape"),
    [
        (nn.Linear(6, 4), (5, 6)),
        (nn.Linear(6, 4, bias=False), (2, 5, 6)),
        (nn.Sequential(nn.Linear(6, 4), nn.ReLU()), (5, 6)),
        (nn.Conv2d(4, 6, 3, groups=2, stride=2, padding=1), (2, 4, 7, 7)),
        (nn.Sequential(nn.Conv2d(4, 6, 1, bias=False), nn.ReLU()), (2, 4, 5, 5)),
    ],
    ids=str,
)
@pytest.mark.parametrize("config", [CONFIG, DYNAMIC], ids=["static", "dynamic"])
def test_each_layer_agrees_to_the_rounding_of_its_bias(model: nn.Module, shape: tuple[int, ...], config: Any) -> None:
    torch.manual_seed(2)
    x = torch.randn(*shape)
    converted, reference = forms(model, x, config=config)
    assert left(reference) <= {"quantized_decomposed.choose_qparams.tensor"}
    scale = float(converted.get_buffer("_scale_0").max()) * float((x.max() - x.min()) / 255)
    with torch.no_grad():
        # Half a step of the sum for its rounded bias, and a few float32 roundings of sums of products.
        atol = 0.51 * scale + 64 * torch.finfo(torch.float32).eps * float(converted(x).abs().max())
        torch.testing.assert_close(reference(x), converted(x), rtol=0, atol=atol)


class Sums(Quantizer):
    """Quantizes both inputs of every sum, and what it gives where `output` says so."""

    def __init__(self, output: bool) -> None:
        self.output = output

    def annotate(self, model: GraphModule) -> GraphModule:
        for node in calls(model, aten.add.Tensor):
            annotation = QuantizationAnnotation(dict.fromkeys(node.all_input_nodes, ACT), _annotated=True)
            node.meta[Q_ANNOTATION_KEY] = annotation
            (reader,) = node.users
            if self.output:
                reader.meta[Q_ANNOTATION_KEY] = QuantizationAnnotation(output_qspec=ACT, _annotated=True)
        return model

    def validate(self, model: GraphModule) -> None:
        """Accept everything."""


@pytest.mark.parametrize("output", [True, False])
@pytest.mark.parametrize("alpha", [1, 2])
def test_sum_of_two_scales_is_what_integers_give(output: bool, alpha: int) -> None:
    torch.manual_seed(4)
    x, y = torch.randn(40, 3), 5 * torch.randn(40, 3)
    model = Net(lambda _, x, y: torch.relu(torch.add(x, y, alpha=alpha)))
    prepared = prepare_pt2e(export(model, x, y), Sums(output))
    prepared(x, y)
    converted = convert_pt2e(prepared)
    reference = convert_pt2e(prepared, use_reference_representation=True)
    assert left(reference) == set()
    nodes: Any = {node.all_input_nodes[0].name: node for node in calls(converted, Q)}  # numbers as arguments
    steps = {name: (float(node.args[1]), int(node.args[2])) for name, node in nodes.items()}
    (sx, zx), (sy, zy) = steps["inputs_0"], steps["inputs_1"]
    qx, qy = (
        np.clip(np.rint(value.numpy() * np.float32(1 / s)) + z, 0, 255).astype(np.int64) - z
        for value, s, z in ((x, sx, zx), (y, sy, zy))
    )
    want = np.maximum(qx * sx + alpha * (qy * sy), 0)
    if output:
        so, zo = steps["relu"]
        want = (np.clip(np.rint(want / so) + zo, 0, 255) - zo) * so
    found = reference(x, y).numpy()
    step = steps["relu"][0] if output else 1e-5
    assert np.abs(found - want).max() <= step * 1.001
    assert np.mean(np.abs(found - want) > 1e-5) < 0.02  # exact except for values between two integers
    summands = [node.meta["val"].dtype for node in calls(reference, aten.sub.Tensor)]
    assert torch.int32 in summands


def test_what_has_no_integer_form_keeps_the_values_of_the_converted_graph() -> None:
    tokens = torch.randint(0, 9, (2, 3))
    prepared = prepare_pt2e(export(nn.Embedding(9, 4), tokens), EmbeddingQuantizer(4))
    converted = convert_pt2e(prepared)
    reference = convert_pt2e(prepared, use_reference_representation=True)
    assert left(reference) == set()
    assert torch.equal(converted(tokens), reference(tokens))
    x = torch.randn(3, 4)
    converted, reference = forms(nn.Linear(4, 5), x, config=WEIGHT_ONLY)
    assert left(reference) == set()
    assert torch.equal(converted(x), reference(x))


def test_pooling_between_float_operators_stays_float() -> None:
    model: Callable[..., nn.Module] = nn.Sequential
    x = torch.randn(1, 3, 8, 8)
    converted, reference = forms(model(nn.Conv2d(3, 3, 3), nn.Tanh(), nn.MaxPool2d(2)), x)
    with torch.no_grad():
        torch.testing.assert_close(reference(x), converted(x), rtol=0, atol=0.02)


def test_reference_exports_again_and_leaves_the_prepared_module_alone() -> None:
    x = torch.randn(2, 3, 16, 16)
    prepared = prepare_pt2e(export(network(), x), quantizer())
    with torch.no_grad():
        prepared(x)
        frozen = Frozen(prepared)
        reference = convert_pt2e(prepared, use_reference_representation=True)
        frozen.check()
        assert torch.equal(torch.export.export(reference, (x,)).module()(x), reference(x))
    assert all(node.meta.get("val") is not None for node in calls(reference))


def test_control_flow_is_written_in_integers_too() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:  # submodules by name
        with torch.no_grad():
            y = m.inner(x)
        return torch.relu(y)

    x = torch.randn(3, 4)
    converted, reference = forms(Net(forward, inner=nn.Linear(4, 4)), x)
    (body,) = [child for child in reference.children() if isinstance(child, GraphModule)]
    assert left(body) == set()
    with torch.no_grad():
        torch.testing.assert_close(reference(x), converted(x), rtol=0, atol=1e-3)
        assert torch.equal(torch.export.export(reference, (x,)).module()(x), reference(x))
