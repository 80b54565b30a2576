"""The quantizer and its configuration under the names that users know."""

import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from x86_support import convert, export, sqnr

from qspec_core import (
    Mode,
    QuantizationConfig,
    QuantizationSpec,
    SelectorError,
    SpecError,
    convert_pt2e,
    coverage,
    prepare_pt2e,
)
from qspec_core.observers import build_observer
from qspec_core.patterns import Flow
from qspec_x86 import (
    TABLE,
    X86InductorQuantizer,
    default_quantizer,
    get_default_x86_inductor_quantization_config,
    get_weight_only_quantization_config,
    lower_pt2e_quantized_to_x86,
)

F = nn.functional


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3)
        self.depthwise = nn.Conv2d(8, 8, 3, groups=8)
        self.linear = nn.Linear(8 * 16, 4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.linear(self.depthwise(torch.relu(self.conv(x))).flatten(1))
        return result


def layers(quantizer: X86InductorQuantizer) -> set[str]:
    exported = torch.export.export(Two().eval(), (torch.randn(1, 3, 8, 8),)).module()
    assert isinstance(exported, GraphModule)
    found = coverage(prepare_pt2e(exported, quantizer, allow_empty=True))
    return {entry.module for entry in found.quantized if entry.module in ("conv", "depthwise", "linear")}


def test_selectors_under_their_known_names() -> None:
    config = get_default_x86_inductor_quantization_config()
    everything = {"conv", "depthwise", "linear"}
    assert layers(X86InductorQuantizer().set_global(config)) == everything
    assert layers(X86InductorQuantizer().set_module_name_qconfig("conv", config)) == {"conv"}
    assert layers(X86InductorQuantizer().set_module_type_qconfig(nn.Linear, config)) == {"linear"}
    by_function = X86InductorQuantizer().set_function_type_qconfig(nn.functional.conv2d, config)
    assert layers(by_function) == {"conv", "depthwise"}
    excluded = X86InductorQuantizer().set_global(config).set_module_name_qconfig("depthwise", None)
    assert layers(excluded) == everything - {"depthwise"}
    assert X86InductorQuantizer().set_global(config).get_global_quantization_config() is config
    assert X86InductorQuantizer().get_global_quantization_config() is None


class Functions(nn.Module):
    """Every function whose row starts integers, but for embeddings."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.head = nn.Parameter(torch.randn(4, 4, 3, 3, 3)), nn.Parameter(torch.randn(5, 200))

    def forward(self, x: Tensor) -> Tensor:
        w, two, one = self.weight, self.weight[..., 0], self.weight[..., 0, 0]
        y = F.conv_transpose3d(F.conv3d(x, w), w)
        z = F.conv_transpose2d(F.conv2d(y.flatten(3), two), two)
        return F.linear(F.conv_transpose1d(F.conv1d(z.flatten(2), one), one), self.head)


class Lookups(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words, self.bags = nn.Embedding(9, 4), nn.EmbeddingBag(9, 4, mode="sum")

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.words(x), self.bags(x)


STARTS = {
    F.conv1d: "conv1d",
    F.conv2d: "conv2d",
    F.conv3d: "conv3d",
    F.conv_transpose1d: "conv_transpose1d",
    F.conv_transpose2d: "conv_transpose2d",
    F.conv_transpose3d: "conv_transpose3d",
    F.linear: "linear",
    F.embedding: "embedding",
    F.embedding_bag: "embedding_bag",
}


def test_every_row_that_starts_integers_is_tested_here() -> None:
    starts = {row.anchor for row in TABLE.rows if row.flow is Flow.STARTS}
    assert {str(anchor).split(".")[1] for anchor in starts} == set(STARTS.values())


@pytest.mark.parametrize("function", STARTS)
def test_a_function_that_users_call_selects_its_row(function: Callable[..., object]) -> None:
    is_lookup = function in (F.embedding, F.embedding_bag)
    model, x = (
        (Lookups(), torch.zeros(2, 3, dtype=torch.int64)) if is_lookup else (Functions(), torch.randn(2, 4, 5, 4, 10))
    )
    config = get_weight_only_quantization_config() if is_lookup else get_default_x86_inductor_quantization_config()
    quantizer = X86InductorQuantizer().set_function_type_qconfig(function, config)
    prepared = prepare_pt2e(export(model, x), quantizer)
    assert {entry.row for entry in coverage(prepared).quantized} == {STARTS[function]}


@pytest.mark.parametrize("function", [torch.cat, torch.flatten, F.max_pool2d, F.pad, Tensor.view, torch.squeeze])
def test_a_function_that_passes_integers_on_is_known(function: Callable[..., object]) -> None:
    quantizer = X86InductorQuantizer()
    assert quantizer.set_function_type_qconfig(function, None) is quantizer


def test_a_function_without_a_row_is_refused() -> None:
    with pytest.raises(SelectorError) as caught:
        X86InductorQuantizer().set_function_type_qconfig(torch.matmul, None)
    assert caught.value.found == "matmul"


@pytest.mark.parametrize(
    ("arguments", "found"),
    [({"weight_bits": 3}, "weight_bits=3"), ({"learnable": True}, "learnable=True, is_qat=False")],
    ids=str,
)
def test_a_configuration_without_kernels_is_refused(arguments: dict[str, Any], found: str) -> None:
    with pytest.raises(SpecError) as caught:
        get_default_x86_inductor_quantization_config(**arguments)
    assert caught.value.found == found


@pytest.mark.parametrize("reduced", [False, True])
def test_the_known_dynamic_configuration(reduced: bool) -> None:
    config = get_default_x86_inductor_quantization_config(is_dynamic=True, reduce_range=reduced)
    assert [spec.range for spec in specs(config)] == [(0, 127 if reduced else 255)] * 2 + [(-128, 127)]
    assert [spec.is_dynamic for spec in specs(config)] == [True, True, False]
    exported = torch.export.export(Two().eval(), (torch.randn(1, 3, 8, 8),)).module()
    assert isinstance(exported, GraphModule)
    converted = convert_pt2e(prepare_pt2e(exported, X86InductorQuantizer().set_global(config)))
    x = torch.randn(1, 3, 8, 8)
    with torch.no_grad():
        expected = converted(x)
        torch.testing.assert_close(lower_pt2e_quantized_to_x86(converted, (x,))(x), expected, rtol=0.05, atol=0.02)
    chosen = [node for node in converted.graph.nodes if "choose_qparams" in str(node.target)]
    assert {node.args[1:4] for node in chosen} == {(0, 127 if reduced else 255, 2.0**-12)}
    assert len(chosen) == 2  # of the convolution and the linear: a depthwise convolution stays in float


def specs(config: QuantizationConfig) -> list[QuantizationSpec]:
    return [spec for spec in (config.input_activation, config.output_activation, config.weight) if spec is not None]


def test_the_known_ranges() -> None:
    config = get_default_x86_inductor_quantization_config()
    reduced = get_default_x86_inductor_quantization_config(reduce_range=True)
    assert [spec.range for spec in specs(config)] == [(0, 255), (0, 255), (-128, 127)]
    assert [spec.range for spec in specs(reduced)] == [(0, 127), (0, 127), (-128, 127)]
    assert [float(build_observer(spec).get_buffer("eps")) for spec in specs(config)] == [2.0**-12] * 3
    assert config is get_default_x86_inductor_quantization_config()


def test_by_default_a_lone_outlier_is_clipped() -> None:
    model, x = nn.Sequential(nn.Linear(16, 4)).eval(), torch.randn(1 << 16, 16)
    x[0, 0] = 12.0
    exported = torch.export.export(model, (x,)).module()
    assert isinstance(exported, GraphModule)
    prepared = prepare_pt2e(exported, default_quantizer(mode=Mode.STATIC))
    prepared(x)
    nodes = convert_pt2e(prepared).graph.nodes
    (scale,) = {node.args[1] for node in nodes if "quantize_per_tensor" in str(node.target)}
    # Of a million values from -5 to 5, a finer step gains more than the outlier loses.
    assert scale < 0.75 * (x.max() - x.min()) / 255.0


@pytest.mark.parametrize("target", ["any", "vnni"])
def test_weights_are_as_wide_as_the_deployment_cpu_allows(target: str) -> None:
    exported = torch.export.export(Two().eval(), (torch.randn(1, 3, 8, 8),)).module()
    assert isinstance(exported, GraphModule)
    prepared = prepare_pt2e(exported, default_quantizer(mode=Mode.STATIC, target=target))
    prepared(torch.randn(1, 3, 8, 8))
    largest = {}
    for name, value in convert_pt2e(prepared).named_buffers():
        if value.dtype is torch.int8:
            values = value.int().flatten(1)
            pairs = [int(row.clamp(min=0).topk(2).values.sum()) for row in torch.cat([values, -values])]
            largest[tuple(value.shape)] = max(pairs)
            # No bit is given away: the channel that needs the most room takes it all.
            assert max(pairs) >= 126, name
    assert (largest[8, 3, 3, 3] <= 128) == (target == "any")
    assert (largest[4, 128] <= 128) == (target == "any")
    assert largest[8, 1, 3, 3] > 128


_FRESH = """
import torch, torch._inductor.config as config
before = config.shallow_copy_dict() if hasattr(config, "shallow_copy_dict") else dict(config._config)
threads, grad = torch.get_num_threads(), torch.is_grad_enabled()
import qspec_x86
after = config.shallow_copy_dict() if hasattr(config, "shallow_copy_dict") else dict(config._config)
assert before == after
assert (threads, grad) == (torch.get_num_threads(), torch.is_grad_enabled())
"""


def test_importing_changes_nothing_of_torchs() -> None:
    subprocess.run([sys.executable, "-c", _FRESH], check=True, timeout=300)


class Mixed(nn.Module):
    """A narrow float part, and a head in float32."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.words, self.inner = nn.Embedding(20, 16).to(dtype), nn.Linear(16, 16).to(dtype)
        self.head = nn.Linear(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.head(torch.relu(self.inner(self.words(x))).float())
        return result


@torch.no_grad()
@pytest.mark.parametrize("dynamic", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_narrow_floats_are_declined_row_by_row(dtype: torch.dtype, dynamic: bool) -> None:
    model, x = Mixed(dtype).eval(), torch.randint(0, 20, (4, 6))
    converted = convert(default_quantizer(mode=Mode.DYNAMIC if dynamic else Mode.STATIC), model, x)
    layers = {entry.module: entry for entry in coverage(converted)}
    assert layers["head"].row == "linear"
    assert f"its result is {dtype}; the kernels write float32" in layers["inner"].detail
    assert sqnr(model(x), converted(x)) > 30
    assert sqnr(converted(x), lower_pt2e_quantized_to_x86(converted, (x,))(x)) > 100
