"""Tables of integers, against the converted graph and against the float model."""

import pytest
import torch
from torch import Tensor, nn
from xnnpack_support import kernels, lowered, sqnr

import qspec_core as qspec
from qspec_core import EmbeddingQuantizer, LoweringError, QuantizationConfig, Quantizer
from qspec_xnnpack import BACKEND, XNNPACKQuantizer, get_symmetric_quantization_config


class Tied(nn.Module):
    """Words and positions, a layer, and a head that has the table of words as its weight."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.places = nn.Embedding(200, 16, padding_idx=0), nn.Embedding(8, 16)
        self.layer, self.head = nn.Linear(16, 16), nn.Linear(16, 200, bias=False)
        self.head.weight = self.words.weight

    def forward(self, x: Tensor) -> Tensor:
        h = self.words(x) + self.places(torch.arange(x.shape[1]))
        result: Tensor = self.head(torch.relu(self.layer(h)) + h)
        return result


INDICES = torch.arange(16).reshape(2, 8) * 13  # the first one is that of the padding


def of_weights(is_per_channel: bool = True, is_dynamic: bool = True, **weight: int) -> QuantizationConfig:
    return get_symmetric_quantization_config(is_per_channel=is_per_channel, is_dynamic=is_dynamic, **weight)


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return Tied().eval()


@torch.no_grad()
@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_tables_are_integers_in_every_mode(mode: str, model: nn.Module) -> None:
    calibration = [(INDICES,)] if mode == "static" else None
    result = qspec.quantize(model, (INDICES,), calibration=calibration, backend=BACKEND, mode=mode)
    tables = [value for value in result.converted.state_dict().values() if value.dim() == 2]
    # Words and head read one tensor.
    assert sorted((tuple(value.shape), value.dtype) for value in tables) == [
        ((8, 16), torch.int8),
        ((16, 16), torch.int8),
        ((200, 16), torch.int8),
    ]
    program = lowered(result)
    assert list(program.delegation.rows.values()).count("embedding") == 2
    assert program.delegation.delegates == 1
    assert program.delegation.outside == ("arange", *["embedding"] * 4)
    found, wanted, real = program(INDICES), result.converted(INDICES), model(INDICES)
    assert sqnr(real, found) > 35
    assert sqnr(wanted, found) > 40


@torch.no_grad()
@pytest.mark.parametrize("index", [torch.int32, torch.int64])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_lookup_equals_the_converted_one_and_takes_a_quarter_of_the_bytes(
    dtype: torch.dtype, index: torch.dtype
) -> None:
    table = nn.Embedding(1000, 64, padding_idx=3).to(dtype).eval()
    x = torch.tensor([[3, 0, 999], [17, 3, 500]], dtype=index)
    result = qspec.quantize(table, (x,), backend=BACKEND, mode="dynamic")
    program = lowered(result)
    assert len(program.buffer) < 1000 * (64 + 4) * 1.1
    found = program(x)
    assert found.dtype is dtype
    torch.testing.assert_close(found, result.converted(x), rtol=0, atol=0)
    assert bool((found[0, 0] == 0).all())
    assert sqnr(table(x).float(), found.float()) > 35


@torch.no_grad()
@pytest.mark.parametrize(
    ("quantizer", "least"),
    [
        (EmbeddingQuantizer(), 38),
        (EmbeddingQuantizer(bits=4), 15),
        (XNNPACKQuantizer(embeddings=True).set_global(of_weights(is_per_channel=False)), 38),
        (XNNPACKQuantizer(embeddings=True).set_global(of_weights(weight_qmin=-8, weight_qmax=7)), 38),
        (XNNPACKQuantizer(embeddings=True).set_global(of_weights(weight_qmin=-8, weight_qmax=7, group_size=32)), 38),
    ],
    ids=["affine", "affine, 4 bits", "one scale", "4 bits", "groups"],
)
def test_a_table_of_any_spec_is_looked_up_exactly(quantizer: Quantizer, least: float) -> None:
    """Configurations of 4 bits, and those with one scale, give tables of 8 bits with a scale for each row."""
    torch.manual_seed(0)
    table, x = nn.Embedding(50, 32).eval(), torch.tensor([[3, 0, 49]])
    result = qspec.quantize(table, (x,), backend=BACKEND, mode="dynamic", quantizer=quantizer)
    found = lowered(result)(x)
    torch.testing.assert_close(found, result.converted(x), rtol=1e-6, atol=1e-6)
    assert sqnr(table(x), found) > least


@torch.no_grad()
def test_a_product_of_a_looked_up_row_is_quantized_beside_it() -> None:
    """The delegate must not take the conversion of the lookup as the input of a quantized product."""

    class Product(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right = nn.Embedding(20, 8), nn.Embedding(20, 8)

        def forward(self, x: Tensor) -> Tensor:
            left, right = self.left(x), self.right(x)
            return torch.mul(left, right)

    torch.manual_seed(0)
    model, x = Product().eval(), torch.tensor([[3, 0, 19]])
    quantizer = XNNPACKQuantizer(embeddings=True).set_global(of_weights(is_dynamic=False))
    result = qspec.quantize(model, (x,), calibration=[(x,)], backend=BACKEND, quantizer=quantizer)
    assert {entry.row for entry in result.coverage} == {"embedding", "mul"}
    program = lowered(result)
    assert kernels(program.buffer).count("XNNMultiply") == 3
    assert sqnr(model(x), program(x)) > 30


@pytest.mark.parametrize("is_default", [False, True])
def test_tables_stay_in_float_where_a_selector_says_so_and_in_the_pt2e_quantizer(
    is_default: bool, model: nn.Module
) -> None:
    quantizer = XNNPACKQuantizer(embeddings=not is_default).set_global(of_weights())
    if not is_default:
        quantizer.set_operator_type(torch.ops.aten.embedding, None)
    result = qspec.quantize(model, (INDICES,), backend=BACKEND, mode="dynamic", quantizer=quantizer)
    tables = [entry for entry in result.coverage if "embedding" in entry.operator]
    assert {(entry.status.value, entry.code) for entry in tables} == {("skipped", "excluded by configuration")}
    assert ("embeddings=False" in tables[0].detail) is is_default
    with torch.no_grad():
        assert sqnr(model(INDICES), lowered(result)(INDICES)) > 35


@torch.no_grad()
def test_a_table_in_a_graph_of_dynamic_sizes(model: nn.Module) -> None:
    length = torch.export.Dim("length", min=2, max=8)
    result = qspec.quantize(model, (INDICES,), backend=BACKEND, mode="dynamic", dynamic_shapes=({1: length},))
    shorter = INDICES[:, 3:]
    program = BACKEND.lower(result.converted, (shorter,), "any")
    torch.testing.assert_close(program(shorter), result.converted(shorter), rtol=1e-4, atol=1e-4)


def test_a_program_that_the_runtime_has_no_kernel_for_is_an_error_that_names_it() -> None:
    class Bags(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bags, self.head = nn.EmbeddingBag(60, 16), nn.Linear(16, 4)

        def forward(self, x: Tensor, offsets: Tensor) -> Tensor:
            result: Tensor = self.head(self.bags(x, offsets))
            return result

    inputs = torch.arange(6), torch.tensor([0, 2, 2])
    result = qspec.quantize(Bags().eval(), inputs, backend=BACKEND, mode="dynamic")
    with pytest.raises(LoweringError) as caught:
        result.lowered  # noqa: B018  # made when asked for
    assert "_embedding_bag" in caught.value.problem
    assert caught.value.where is not None
    assert caught.value.where.module_path == "bags"
