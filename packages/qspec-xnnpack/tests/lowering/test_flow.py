"""Lowering as a whole: one delegate in integers, and errors for what the delegate refuses."""

from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from xnnpack_support import IMAGE_INPUT as X
from xnnpack_support import kernels, lowered, quantized, steps

import qspec_core as qspec
from qspec_core import GraphError, LoweringError, Result
from qspec_core.patterns import PatternTable
from qspec_xnnpack import (
    BACKEND,
    XNNPACKProgram,
    XNNPACKQuantizer,
    get_symmetric_quantization_config,
)
from qspec_xnnpack._lowering import _flow
from qspec_xnnpack._rows import TABLE


def test_block_is_one_delegate_in_integers(result: Result, program: XNNPACKProgram) -> None:
    assert (program.delegation.delegates, program.delegation.outside) == (1, ())
    assert kernels(program.buffer).count("XNNConvert") == 2
    # Each of the five layers before the head may round one value to its other side.
    with torch.no_grad():
        torch.testing.assert_close(program(X), result.converted(X), rtol=0, atol=3 * steps(result.converted)[0])


def test_channels_last_input_gives_the_same(program: XNNPACKProgram) -> None:
    assert torch.equal(program(X.to(memory_format=torch.channels_last)), program(X))


def test_channels_last_example_gives_the_same(result: Result, program: XNNPACKProgram) -> None:
    last = X.to(memory_format=torch.channels_last)
    other = BACKEND.lower(result.converted, (last,), "any")
    assert torch.equal(other(X), program(X))
    assert torch.equal(other(last), program(X))


def test_a_graph_made_on_another_device_runs_on_the_cpu() -> None:
    class Placed(nn.Module):
        """A linear layer over inputs to which their places are added."""

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(4, 3)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.layer(x + torch.arange(4, device=x.device))
            return found

    x = torch.randn(2, 4)
    result = quantized(Placed().eval(), x)
    expected = result.lowered(x)
    (places,) = result.converted.graph.find_nodes(op="call_function", target=torch.ops.aten.arange.default)
    places.kwargs = {**places.kwargs, "device": torch.device("meta")}
    places.meta["val"] = places.meta["val"].to("meta")
    assert torch.equal(BACKEND.lower(result.converted, (x,), "any")(x), expected)


def test_lowering_leaves_the_converted_graph_alone(result: Result) -> None:
    graph = str(result.converted.graph)
    metas = [dict(node.meta) for node in result.converted.graph.nodes]
    BACKEND.lower(result.converted, (X,), "any")
    assert str(result.converted.graph) == graph
    assert [node.meta.keys() for node in result.converted.graph.nodes] == [meta.keys() for meta in metas]
    assert not any("qspec_row" in (node.meta.get("custom") or {}) for node in result.converted.graph.nodes)


def test_no_constant_is_written_twice() -> None:
    """A layer of n weights takes about n bytes: neither float weights nor folded batch norms are left beside them."""
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Conv2d(3, 256, 1), nn.Conv2d(256, 256, 3, bias=False), nn.BatchNorm2d(256)).eval()
    result = quantized(wide, X[..., :4, :4])
    weights = 256 * 3 + 256 * 256 * 9
    assert weights < len(lowered(result).buffer) < 1.1 * weights


def with_row(table: PatternTable, name: str, **changes: object) -> PatternTable:
    return replace(table, rows=tuple(replace(r, **changes) if r.name == name else r for r in table.rows))  # type: ignore[arg-type]  # fields by name


class Sliced(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.conv(x))[:, ::2]


class Product(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        return F.relu(y * y)


def quantized_by(table: PatternTable, model: nn.Module) -> Result:
    quantizer = qspec.TableQuantizer(table).set_global(get_symmetric_quantization_config())
    return qspec.quantize(model, (X,), calibration=[(X,)], backend=BACKEND, quantizer=quantizer)


def test_refused_operator_is_an_error_that_names_it(monkeypatch: pytest.MonkeyPatch) -> None:
    table = with_row(TABLE, "slice", checks=())
    result = quantized_by(table, Sliced())
    monkeypatch.setattr(_flow, "TABLE", table)
    with pytest.raises(LoweringError) as caught:
        result.lowered  # noqa: B018  # made when asked for
    assert caught.value.where.node == "slice_1"
    assert "slice" in caught.value.problem
    assert "slice_copy" in str(caught.value.found)


def test_operator_computed_in_float_inside_the_delegate_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    chains = next(row.chains for row in TABLE.rows if row.name == "add")
    table = with_row(TABLE, "mul", chains=chains)
    result = quantized_by(table, Product())
    monkeypatch.setattr(_flow, "TABLE", table)
    with pytest.raises(LoweringError) as caught:
        result.lowered  # noqa: B018  # made when asked for
    assert "mul + relu" in caught.value.problem
    assert "in float" in str(caught.value.found)


def test_scales_along_a_dimension_that_the_kernel_cannot_take_are_an_error() -> None:
    """As another quantizer may write it: a transposed convolution with a scale for each input channel."""
    operands = next(row.operands for row in TABLE.rows if row.name == "conv_transpose2d")
    other = tuple(replace(operand, ch_axis=0) if operand.ch_axis == 1 else operand for operand in operands)
    table = with_row(TABLE, "conv_transpose2d", operands=other)
    quantizer = qspec.TableQuantizer(table).set_global(get_symmetric_quantization_config(is_per_channel=True))
    model = nn.ConvTranspose2d(3, 4, 2).eval()
    result = qspec.quantize(model, (X,), calibration=[(X,)], backend=BACKEND, quantizer=quantizer)
    with pytest.raises(LoweringError) as caught:
        result.lowered  # noqa: B018  # made when asked for
    assert "conv_transpose2d" in caught.value.problem
    assert "per input channel" in str(caught.value.found)


def test_layer_without_quantized_output_is_an_error() -> None:
    """As another quantizer may write it: the partitioner takes a static convolution only in front of a quantize."""
    config = replace(get_symmetric_quantization_config(is_per_channel=True), output_activation=None)
    result = quantized(nn.Conv2d(3, 4, 1).eval(), X, quantizer=XNNPACKQuantizer().set_global(config))
    with pytest.raises(LoweringError) as caught:
        result.lowered  # noqa: B018  # made when asked for
    assert "convolution" in caught.value.problem


def test_example_inputs_that_do_not_fit_raise(result: Result) -> None:
    with pytest.raises(GraphError) as caught:
        BACKEND.lower(result.converted, (X, X), "any")
    assert "exported with" in caught.value.remedy
