"""Which recurrent layers a table's quantizer expands, and what it says about the others."""

import pytest
import torch
from core_support import Net, export, quantizer
from torch import nn

from qspec_core import CoverageStatus, TableQuantizer, coverage, prepare_pt2e

pytestmark = [
    pytest.mark.filterwarnings("ignore:The tensor attributes"),  # torch.export of nn.LSTM
    pytest.mark.filterwarnings("ignore:RNN module weights"),
]
aten = torch.ops.aten


def statuses(chosen: TableQuantizer) -> dict[str, tuple[CoverageStatus, str]]:
    """Status and reason of two recurrent layers."""
    model = Net(lambda m, x: m.second(m.first(x)[0])[0], first=nn.LSTM(3, 3), second=nn.GRU(3, 3))
    found = coverage(prepare_pt2e(export(model, torch.randn(2, 1, 3)), chosen, allow_empty=True))
    return {entry.node: (entry.status, entry.detail) for entry in found if entry.kind == "recurrent layers"}


QUANTIZED = (CoverageStatus.QUANTIZED, "")


def test_by_module_type() -> None:
    found = statuses(quantizer().set_module_type(nn.LSTM, None))
    assert found == {"lstm": (CoverageStatus.SKIPPED, f"module_type {nn.LSTM}"), "gru": QUANTIZED}


def test_by_module_name() -> None:
    found = statuses(quantizer().set_module_name("second", None))
    assert found == {"lstm": QUANTIZED, "gru": (CoverageStatus.SKIPPED, "module_name second")}


def test_by_operator_of_the_layer_and_not_of_what_it_is_written_as() -> None:
    found = statuses(quantizer().set_operator_type(aten.gru.input, None))
    assert found == {"lstm": QUANTIZED, "gru": (CoverageStatus.SKIPPED, "operator_type aten.gru.input")}


@pytest.mark.parametrize(("features", "stays"), [(2, True), (3, False)])
def test_few_features_of_a_given_sequence_stay_in_float(features: int, stays: bool) -> None:
    model = Net(lambda m, x: m.lstm(x)[0], lstm=nn.LSTM(features, 12, 2, batch_first=True))
    found = coverage(prepare_pt2e(export(model, torch.randn(2, 3, features)), quantizer()))
    layers = {entry.node.rpartition(".")[2]: entry for entry in found if entry.is_layer}
    assert (layers["lstm_ih_l0"].status is CoverageStatus.SKIPPED) is stays
    assert ("few features" in layers["lstm_ih_l0"].detail) is stays
    assert all(layers[name].status is CoverageStatus.QUANTIZED for name in ("lstm_hh_l0", "lstm_ih_l1", "lstm_hh_l1"))
    assert [entry.status for entry in found if entry.kind == "recurrent layers"] == [CoverageStatus.QUANTIZED]


def test_few_features_that_the_model_computes_are_quantized() -> None:
    model = Net(lambda m, x: m.lstm(torch.tanh(x))[0], lstm=nn.LSTM(2, 12))
    found = coverage(prepare_pt2e(export(model, torch.randn(2, 3, 2)), quantizer()))
    assert all(entry.status is CoverageStatus.QUANTIZED for entry in found if entry.is_layer)
