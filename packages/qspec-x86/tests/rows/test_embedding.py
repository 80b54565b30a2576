"""Tables of integers, against float64 arithmetic on the same integers."""

import warnings
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.fx import GraphModule
from x86_support import FORMS, Lower

from qspec_core import (
    EmbeddingQuantizer,
    QuantizationConfig,
    convert_pt2e,
    coverage,
    get_embedding_operators_config,
    prepare_pt2e,
    quantize,
)
from qspec_x86 import (
    LOWERING_KEY,
    X86InductorQuantizer,
    get_default_x86_inductor_quantization_config,
    get_weight_only_quantization_config,
    load_package,
    lower_eager,
    package,
)

aten = torch.ops.aten

CONFIGS: dict[str, QuantizationConfig] = {
    "8 bits, affine": get_embedding_operators_config(8).config,
    "4 bits, affine": get_embedding_operators_config(4).config,
    "8 bits, symmetric": get_weight_only_quantization_config(),
}


class Tables(nn.Module):
    """A lookup, and sums of bags in each way to call them."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.words = nn.Embedding(50, width, padding_idx=0)
        self.bags = nn.EmbeddingBag(60, width, mode="sum")

    def forward(self, indices: Tensor, offsets: Tensor, shares: Tensor) -> tuple[Tensor, ...]:
        whole = indices.reshape(4, -1)
        return (
            self.words(whole),
            self.bags(indices, offsets),
            self.bags(whole),
            self.bags(indices, offsets, shares),
        )


def inputs(dtype: torch.dtype = torch.int64) -> tuple[Tensor, Tensor, Tensor]:
    # One bag is empty.
    return torch.randint(0, 40, (20,), dtype=dtype), torch.tensor([0, 5, 5, 12], dtype=dtype), torch.rand(20)


def convert(model: nn.Module, config: QuantizationConfig, example: tuple[Tensor, ...]) -> GraphModule:
    exported = torch.export.export(model.eval(), example).module()
    assert isinstance(exported, GraphModule)
    return convert_pt2e(prepare_pt2e(exported, X86InductorQuantizer().set_global(config)))


@torch.no_grad()
@pytest.mark.parametrize("lower", FORMS)
@pytest.mark.parametrize("width", [16, 7])
@pytest.mark.parametrize("name", CONFIGS)
def test_a_lowered_table_equals_the_converted_one(name: str, width: int, lower: Lower) -> None:
    given = inputs()
    converted = convert(Tables(width), CONFIGS[name], given)
    lowered = lower(converted)
    assert sorted(lowered.meta[LOWERING_KEY].lowered.values()) == ["embedding", *["embedding_bag"] * 3]
    targets = [str(node.target) for node in lowered.graph.nodes]
    nibbles = name.startswith("4") and width % 2 == 0
    assert targets.count(f"quantized.embedding_bag_{'4bit' if nibbles else 'byte'}_rowwise_offsets.default") == 3
    assert not any("dequantize" in target for target in targets)
    # The plain tables are gone: the lowered graph holds the integers, and a scale and an offset for each row.
    floats = [value for value in lowered.state_dict().values() if value.is_floating_point()]
    assert all(value.shape[-1] == 1 for value in floats)
    found, expected = lowered(*given), converted(*given)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=0)
    for sums, wanted in zip(found[1:], expected[1:], strict=True):
        # Of 4 bits, scale and offset are kept in float16; a bag has up to 8 rows.
        torch.testing.assert_close(sums, wanted, rtol=0, atol=8 * 2.0**-11 * 4 if nibbles else 1e-5)


@torch.no_grad()
def test_indices_of_32_bits() -> None:
    given = inputs(torch.int32)
    converted = convert(Tables(), CONFIGS["8 bits, affine"], given)
    for found, expected in zip(lower_eager(converted)(*given), converted(*given), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


@torch.no_grad()
def test_tables_of_cores_quantizer_are_lowered_and_compiled(tmp_path: Path) -> None:
    given = inputs()
    exported = torch.export.export(Tables().eval(), given).module()
    assert isinstance(exported, GraphModule)
    converted = convert_pt2e(prepare_pt2e(exported, EmbeddingQuantizer(bits=4)))
    eager = lower_eager(converted)
    assert len(eager.meta[LOWERING_KEY].lowered) == 4
    torch._dynamo.reset()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Inductor's own, which differ between versions of torch
        compiled = torch.compile(eager)(*given)
    loaded = load_package(package(converted, given, tmp_path / "tables.pt2"))(*given)
    for form in (compiled, loaded):
        for found, expected in zip(form, eager(*given), strict=True):
            torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


class Unfit(nn.Module):
    """Bags that the kernel would sum all the same, without a word."""

    def __init__(self) -> None:
        super().__init__()
        self.mean, self.largest = nn.EmbeddingBag(20, 8, mode="mean"), nn.EmbeddingBag(20, 8, mode="max")
        self.last = nn.EmbeddingBag(20, 8, mode="sum", include_last_offset=True)
        self.padded, self.words = nn.EmbeddingBag(20, 8, mode="sum", padding_idx=3), nn.Embedding(20, 8)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        ends = torch.arange(0, 16, 5)
        return self.mean(x), self.largest(x), self.padded(x), self.last(x.reshape(-1), ends), self.words(x)


@torch.no_grad()
def test_what_the_kernel_would_sum_wrongly_stays_in_float() -> None:
    x = torch.randint(0, 20, (3, 5))
    model = Unfit()
    converted = convert(model, CONFIGS["8 bits, affine"], (x,))
    found = {entry.module: entry for entry in coverage(converted) if "embedding" in entry.operator}
    assert "mean or a maximum" in found["mean"].detail
    assert "mean or a maximum" in found["largest"].detail
    assert "padding index" in found["padded"].detail
    assert "end of the last bag" in found["last"].detail
    assert found["words"].row == "embedding"
    for result, expected in zip(lower_eager(converted)(x)[:4], model(x)[:4], strict=True):
        torch.testing.assert_close(result, expected, rtol=0, atol=0)


@torch.no_grad()
def test_a_bfloat16_table() -> None:
    x = torch.randint(0, 20, (3, 5))
    converted = convert(nn.Embedding(20, 8).bfloat16(), CONFIGS["8 bits, symmetric"], (x,))
    found, expected = lower_eager(converted)(x), converted(x)
    assert found.dtype is expected.dtype is torch.bfloat16
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


class Tied(nn.Module):
    """Words and positions, a layer, and a head that has the table of words as its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(200, 16), nn.Embedding(8, 16)
        self.layer, self.head = nn.Linear(16, 16), nn.Linear(16, 200, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.places(torch.arange(x.shape[1]))
        result: Tensor = self.head(torch.relu(self.layer(h)) + h)
        return result


@pytest.mark.parametrize("target", ["any", "vnni"])
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_tables_are_integers_in_every_mode_and_a_tied_one_is_stored_once(mode: str, target: str) -> None:
    x = torch.randint(200, (2, 8))
    model = Tied().eval()
    calibration = [(x,)] if mode == "static" else None
    result = quantize(model, (x,), calibration=calibration, backend="x86", mode=mode, target=target)
    tables = [value for value in result.converted.state_dict().values() if value.dim() == 2]
    assert sorted((tuple(value.shape), value.dtype) for value in tables) == [
        ((8, 16), torch.int8),
        ((16, 16), torch.int8),
        ((200, 16), torch.int8),
    ]
    lowered = lower_eager(result.converted, target)
    assert lowered.meta[LOWERING_KEY].narrowed == ()
    torch.testing.assert_close(lowered(x), result.converted(x), rtol=1e-4, atol=1e-4)
    noise, signal = (result.converted(x) - model(x)).square().sum(), model(x).square().sum()
    assert 10 * torch.log10(signal / noise) > 30
    # The sum of two looked-up rows stays in float: a quantize there would only lose accuracy.
    (first, *_) = (node for node in result.converted.graph.nodes if node.target is aten.add.Tensor)
    assert all(node.target is aten.embedding.default for node in first.all_input_nodes)


def test_tables_stay_in_float_where_a_selector_says_so_and_in_the_pt2e_quantizer() -> None:
    x = torch.randint(200, (2, 8))
    with torch.no_grad():
        exported = torch.export.export(Tied().eval(), (x,)).module()
    dynamic = get_default_x86_inductor_quantization_config(is_dynamic=True)
    chosen = X86InductorQuantizer(embeddings=True).set_global(dynamic).set_module_type(nn.Embedding, None)
    for quantizer in (chosen, X86InductorQuantizer().set_global(dynamic)):
        found = coverage(prepare_pt2e(exported, quantizer))
        assert {e.status.value for e in found if "embedding" in e.operator} == {"skipped"}
        assert len(found.quantized_layers) == 2
