"""The pages of rows are current and agree with the tables."""

from dataclasses import replace
from types import MappingProxyType

import pytest
import torch

import rows_page
from qspec_core.patterns import DELEGATED, Flow, Mode, Outputs, PatternTable, PostOp, PreOp, Row, activation, weight

aten = torch.ops.aten
ROW = Row(
    name="conv2d",
    anchor=aten.conv2d.default,
    operands=(activation("input", absorbs=(PreOp(aten.pad.default),)), weight("weight", ch_axis=0)),
    chains=((PostOp(aten.relu.default, kernel="relu"),), ()),
    flow=Flow.STARTS,
    modes=frozenset({Mode.STATIC, Mode.DYNAMIC}),
    lower=DELEGATED,
)
TABLE = PatternTable(
    (ROW,), Outputs.ALWAYS, MappingProxyType({aten.exp.default: "no kernel", aten.abs.default: "no kernel"})
)


def test_pages_are_current() -> None:
    for name in rows_page.BACKENDS:
        pytest.importorskip(f"qspec_{name}")
    assert rows_page.main([]) == 0


def test_a_row_says_operands_tails_and_modes() -> None:
    text = rows_page.rows_of(TABLE)
    assert (
        "| conv2d | `aten.conv2d.default` | input (activation), weight (weight, channels 0) | relu | `aten.pad.default`"
        " | dynamic, static | starts integers |"
    ) in text.splitlines()
    assert "No kernel:\n\n`aten.abs.default`, `aten.exp.default`." in text


def test_another_table_gives_another_page() -> None:
    other = replace(TABLE, rows=(replace(ROW, chains=((),)),))
    assert rows_page.rows_of(other) != rows_page.rows_of(TABLE)


def test_what_is_left_out_is_listed_with_its_reason() -> None:
    found = rows_page.rows_of(
        replace(TABLE, left_out=MappingProxyType({"fp8": "no instructions", "more": "word " * 40}))
    )
    assert "## Left out, and why\n\n- **fp8**: no instructions\n- **more**: word" in found
    assert max(map(len, found.partition("## Left out")[2].splitlines())) <= 118
    assert "Left out" not in rows_page.rows_of(TABLE)
