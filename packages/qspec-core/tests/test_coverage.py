"""Coverage: every float operator once, as plain data that prints, serializes and compares."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_support import WEIGHT_ONLY, Net, export, quantized, quantizer, settled
from torch import Tensor, nn
from torch.fx import Node

from qspec_core import Coverage, CoverageEntry, CoverageStatus, GraphError, coverage, prepare_pt2e


class Body(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.norm = nn.BatchNorm2d(4)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        y = F.dropout(F.relu6(self.norm(self.conv(x))), 0.5, self.training)
        result: Tensor = self.head(torch.tanh(y.mean((2, 3))))
        return result


@pytest.fixture(scope="module", name="found")
def _found() -> Coverage:
    model = settled(nn.Sequential(Body()))
    x = torch.randn(2, 3, 8, 8)
    return coverage(quantized(export(model, x), (x,)))


def test_every_float_operator_is_there_once_in_graph_order(found: Coverage) -> None:
    assert [(e.operator, e.module, e.status.value, e.row, e.code) for e in found] == [
        ("aten.conv2d.default", "0.conv", "quantized", "conv2d + hardtanh", ""),
        ("aten.hardtanh.default", "0", "quantized", "conv2d + hardtanh", ""),
        ("aten.mean.dim", "0", "skipped", "", "no row"),
        ("aten.tanh.default", "0", "skipped", "", "no row"),
        ("aten.linear.default", "0.head", "quantized", "linear", ""),
        ("aten.batch_norm.default", "0.norm", "folded", "folded into conv2d", ""),
        ("aten.dropout.default", "0", "folded", "identity in evaluation", ""),
    ]
    assert len(found) == 7


def test_check_that_nothing_reads_stays() -> None:
    x = torch.rand(2, 4)

    def forward(self: Any, x: Tensor) -> Tensor:
        torch._assert_async(
            x.sum() > -1e3, "the sum is too small"
        )  # an operator that tracing makes from a check of values
        result: Tensor = self.a(x)
        return result

    module = export(Net(forward, a=nn.Linear(4, 4)), x)
    converted = quantized(module, (x,))
    assert [str(node.target) for node in converted.graph.nodes].count("aten._assert_async.msg") == 1
    with pytest.raises(RuntimeError, match="too small"):
        converted(torch.full((2, 4), -1e9))


def test_operator_that_nothing_reads_says_so() -> None:
    x = torch.randn(2, 4)

    def forward(self: Any, x: Tensor) -> Tensor:
        self.b(x).add_(1)
        result: Tensor = self.a(x)
        return result

    module = export(Net(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4)), x)
    found = coverage(quantized(module, (x,)))
    unread = [str(entry) for entry in found if entry.module == "b"]
    assert unread == ["linear (aten.linear.default) in b: folded, removed: nothing reads its result"]
    counts, *lines = found.summary().splitlines()
    assert counts.startswith("1 of 2 convolution and linear layers quantized")
    assert lines == ["  1 x aten.linear.default: removed: nothing reads its result"]


def test_parts(found: Coverage) -> None:
    assert [e.operator for e in found.layers] == ["aten.conv2d.default", "aten.linear.default"]
    assert found.quantized_layers == found.layers
    assert len(found.quantized) == 3
    assert len(found.skipped) == 2
    assert len(found.with_status(CoverageStatus.FOLDED)) == 2


def test_summary_counts_and_lists_reasons(found: Coverage) -> None:
    assert found.summary().splitlines() == [
        # 4 x 3 x 3 x 3 weights at 2 x 6 x 6 places, and 2 x 2 x 4 of the linear layer; the biases (4 and 2) stay float.
        "2 of 2 convolution and linear layers quantized; 95.1% of 488 bytes of weights and 100.0% of 7,792 "
        "multiply-adds in integers; 3 operators quantized, 2 folded, 2 skipped",
        "  1 x aten.mean.dim: no row",
        "  1 x aten.tanh.default: no row",
    ]
    assert str(found) == found.summary()


def test_reasons_are_ordered_by_how_often_they_occur() -> None:
    entries = [
        CoverageEntry(f"n{i}", op, "", CoverageStatus.SKIPPED, code="no row") for i, op in enumerate(("a", "b", "b"))
    ]
    assert Coverage(tuple(entries)).summary().splitlines()[1:] == ["  2 x b: no row", "  1 x a: no row"]


def test_explain_a_node_a_module_and_all_inside_it(found: Coverage) -> None:
    assert found.explain("conv2d") == "conv2d (aten.conv2d.default) in 0.conv: quantized, by row conv2d + hardtanh"
    assert found.explain("0.norm").endswith("folded, folded into conv2d")
    assert found.explain("tanh").endswith("skipped, no row")
    assert len(found.explain("0").splitlines()) == 7
    with pytest.raises(GraphError, match="no operator or module 'nothing'"):
        found.explain("nothing")


def test_json_round_trip(found: Coverage) -> None:
    assert Coverage.from_dict(json.loads(json.dumps(found.to_dict()))) == found


def test_compare_pairs_what_differs(found: Coverage) -> None:
    changed = [e for e in found if e.operator != "aten.tanh.default"]
    changed[0] = CoverageEntry(changed[0].node, changed[0].operator, "0.conv", CoverageStatus.SKIPPED, code="no row")
    other = Coverage((*changed, CoverageEntry("new", "aten.add.Tensor", "", CoverageStatus.SKIPPED, code="no row")))
    assert found.compare(found) == ()
    pairs = found.compare(other)
    names = [((a or b).node, a is None, b is None) for a, b in pairs if a is not None or b is not None]  # type: ignore[union-attr]  # one is an entry
    assert names == [("conv2d", False, False), ("tanh", False, True), ("new", True, False)]


def test_reason_has_its_detail() -> None:
    entry = CoverageEntry("n", "op", "", CoverageStatus.SKIPPED, code="unsupported argument", detail="alpha is 2")
    assert entry.reason == "unsupported argument: alpha is 2"
    assert str(entry) == "n (op): skipped, unsupported argument: alpha is 2"


def test_coverage_of_prepared_and_converted_module_is_one() -> None:
    x = torch.randn(2, 4)
    exported = export(nn.Linear(4, 4), x)
    prepared = prepare_pt2e(exported, quantizer())
    assert coverage(prepared) == coverage(quantized(exported, (x,)))
    with pytest.raises(GraphError, match="has no coverage"):
        coverage(exported)
    with pytest.raises(GraphError, match="has no coverage"):
        coverage(nn.Linear(1, 1))


def test_integer_operators_are_left_out_and_tuples_counted() -> None:
    def forward(m: Any, x: Tensor, i: Tensor) -> Tensor:
        values, _ = torch.max(m.linear(x), 1)
        return values + (i + i)

    x = torch.randn(2, 4), torch.tensor([1, 2])
    found = coverage(prepare_pt2e(export(Net(forward, linear=nn.Linear(4, 4)), *x), quantizer()))
    assert [e.operator for e in found] == ["aten.linear.default", "aten.max.dim", "aten.add.Tensor"]


def test_float64_is_named() -> None:
    x = torch.randn(2, 4, dtype=torch.float64)
    module = export(nn.Linear(4, 2).double(), x)
    (entry,) = coverage(prepare_pt2e(module, quantizer(), allow_empty=True))
    assert entry.reason == (
        "unsupported argument: operand input is torch.float64, which the quantize operators do not take"
    )


_QUANTIZED = ("lstm.weight_ih_l0", "lstm.weight_hh_l0", "head.weight")


class Recurrent(nn.Module):
    """A model whose weights lie mostly outside of convolutions and linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.lstm = nn.Embedding(20, 8), nn.LSTM(8, 8, batch_first=True)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 2)
        self.scale = nn.Parameter(torch.ones(8))

    def forward(self, indices: Tensor) -> Tensor:
        states, _ = self.lstm(self.table(indices))
        result: Tensor = self.head(self.norm(states[:, -1]) * self.scale)
        return result


@pytest.mark.filterwarnings("ignore:The tensor attributes")  # torch.export of nn.LSTM
@pytest.mark.filterwarnings("ignore:RNN module weights")
def test_headline_counts_all_operators_that_hold_weights() -> None:
    model, indices = Recurrent(), torch.tensor([[1, 2, 3]])
    prepared = prepare_pt2e(export(model, indices), quantizer().set_module_type(nn.LSTM, None))
    found = coverage(prepared)
    whole = sum(parameter.nbytes for parameter in model.parameters())
    integers = model.head.weight.nbytes
    assert sum(entry.weight_bytes for entry in found) == whole
    assert found.integer_weight_share == integers / whole
    recurrent = 3 * 4 * 8 * (8 + 8)
    assert found.integer_multiply_add_share == 16 / (recurrent + 16)
    assert found.summary().partition("; ")[0] == (
        "1 of 1 convolution and linear layers quantized, 0 of 1 recurrent layers, 0 of 1 embeddings, "
        "0 of 1 normalizations, 0 of 1 other operators with weights"
    )
    assert f"; {integers / whole:.1%} of {whole:,} bytes of weights and " in found.summary()
    assert [entry.kind for entry in found if entry.weight_bytes] == [
        "embeddings",
        "recurrent layers",
        "normalizations",
        "other operators with weights",
        "convolution and linear layers",
    ]


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.filterwarnings("ignore:RNN module weights")
def test_a_recurrent_layer_is_quantized_with_its_weights_and_every_step() -> None:
    model, indices = Recurrent(), torch.tensor([[1, 2, 3]])
    found = coverage(prepare_pt2e(export(model, indices), quantizer()))
    lstm = next(entry for entry in found if entry.kind == "recurrent layers")
    assert (lstm.node, lstm.operator, lstm.module) == ("lstm", "aten.lstm.input", "lstm")
    assert (lstm.status, lstm.row) == (CoverageStatus.QUANTIZED, "linear")
    assert "3 of 3 convolution and linear layers quantized, 1 of 1 recurrent layers" in found.summary()
    weights = [p for name, p in model.named_parameters() if name in _QUANTIZED]
    assert sum(entry.integer_weight_bytes for entry in found) == sum(weight.nbytes for weight in weights)
    assert [e.multiply_adds for e in found if e.is_layer] == [3 * 4 * 8 * 8, 3 * 4 * 8 * 8, 16]
    assert found.integer_multiply_add_share == 1


@pytest.mark.filterwarnings("ignore:The tensor attributes")
@pytest.mark.filterwarnings("ignore:RNN module weights")
def test_a_recurrent_layer_with_a_float_part_says_which() -> None:
    def keep(node: Node) -> bool:
        return "_hh_" not in node.name

    model, indices = Recurrent(), torch.tensor([[1, 2, 3]])
    found = coverage(prepare_pt2e(export(model, indices), quantizer().set_filter_function(keep)))
    lstm = next(entry for entry in found if entry.kind == "recurrent layers")
    assert lstm.status is CoverageStatus.SKIPPED
    assert lstm.detail == "1 of its 2 linear layers stay in float: the filter function returned False"


def test_a_shared_weight_counts_once_for_quantized_and_once_for_float_readers() -> None:
    layer, x = nn.Linear(4, 4, bias=False), torch.randn(2, 4)
    model = Net(lambda m, x: m.layer(torch.tanh(m.layer(x))) + m.layer.weight.sum(), layer=layer)
    found = coverage(quantized(export(model, x), (x,)))
    assert [(e.operator, e.weight_bytes, e.integer_weight_bytes) for e in found if e.weight_bytes] == [
        ("aten.linear.default", 64, 64),
        ("aten.sum.default", 64, 0),
    ]


def test_weights_alone_in_integers_are_no_integer_products() -> None:
    x = torch.randn(2, 4)
    found = coverage(quantized(export(nn.Linear(4, 4), x), (x,), config=WEIGHT_ONLY))
    (entry,) = found
    assert entry.integer_weight_bytes == 64
    assert (entry.multiply_adds, entry.integer_multiply_adds) == (32, 0)


def test_a_written_buffer_is_no_weight() -> None:
    def forward(m: Any, x: Tensor) -> Tensor:
        result: Tensor = m.layer(x + m.state.add_(x))
        return result

    x = torch.randn(2, 4)
    model = Net(forward, layer=nn.Linear(4, 4, bias=False), state=torch.zeros(2, 4))
    found = coverage(quantized(export(model, x), (x,)))
    assert sum(entry.weight_bytes for entry in found) == 64


def test_data_without_numbers_is_read() -> None:
    data = {"node": "linear", "operator": "aten.linear.default", "module": "", "status": "quantized", "row": "linear"}
    found = Coverage.from_dict({"entries": [data]})
    assert found.integer_weight_share == 0
    assert found.summary() == (
        "1 of 1 convolution and linear layers quantized; 1 operators quantized, 0 folded, 0 skipped"
    )
