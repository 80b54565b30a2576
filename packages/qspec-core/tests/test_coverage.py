"""Coverage: every float operator once, as plain data that prints, serializes and compares."""

import json
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from core_support import Net, export, quantized, quantizer, settled
from torch import Tensor, nn

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
        "2 of 2 convolution and linear layers quantized; 3 operators quantized, 2 folded, 2 skipped",
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
