"""Rows as data."""

import dataclasses

import pytest
import torch
from core_support import ADD_ROW, CAT, CONV2D, PAD, ROWS

from qspec_core.patterns import DELEGATED, Delegated, Outputs, PatternTable, Reason, ReasonCode, Role


def test_reason_reads_as_code_and_detail() -> None:
    assert str(Reason(ReasonCode.NO_ROW)) == "no row"
    assert str(Reason.unsupported("alpha is 2")) == "unsupported argument: alpha is 2"


def test_codes_are_stable() -> None:
    """They are written into coverage files: a change here is a change of format."""
    assert [code.value for code in ReasonCode] == [
        "no row",
        "excluded by configuration",
        "not selected by any configuration",
        "unsupported argument",
        "unsupported mode",
        "not floating point",
        "input not quantized",
        "no integer reader",
        "no integer kernel",
        "already quantized",
        "kernel differs from the converted graph",
        "not annotated by the quantizer",
    ]


def test_row_knows_its_activations_and_whether_it_is_a_layer() -> None:
    assert [operand.name for operand in CONV2D.activations] == ["input"]
    assert [operand.name for operand in ADD_ROW.activations] == ["self", "other"]
    assert [operand.role for operand in CAT.activations] == [Role.ACTIVATIONS]
    assert (CONV2D.has_weight, PAD.has_weight) == (True, False)
    assert Delegated() == DELEGATED


@pytest.mark.parametrize("row", ROWS, ids=[row.name for row in ROWS])
def test_rows_are_hashable_values(row: object) -> None:
    assert row in {row}
    with pytest.raises(dataclasses.FrozenInstanceError):
        row.name = "other"  # type: ignore[attr-defined]  # it has the field; assigning is what must fail


def test_functions_of_a_table_are_those_that_users_call() -> None:
    functions = PatternTable((CONV2D, CAT, PAD), Outputs.DEMAND).functions()
    assert functions[torch.nn.functional.conv2d] is torch.ops.aten.conv2d
    assert functions[torch.conv2d] is torch.ops.aten.conv2d
    assert functions[torch.cat] is torch.ops.aten.cat
    assert functions[torch.nn.functional.pad] is torch.ops.aten.pad
    assert torch.matmul not in functions
