"""The committed scorecards name every row and mode of the tables. `nox -s scorecards` runs the cases again."""

import json
from typing import Any

import pytest

import scorecards
from qspec_core.backend import get_backend
from qspec_core.testing import conformance_cases
from qspec_core.testing._cases import RowCase


def committed(name: str) -> dict[str, Any]:
    path = scorecards.ROOT / "packages" / f"qspec-{name}" / "scorecard.json"
    card: dict[str, Any] = json.loads(path.read_text())
    return card


@pytest.mark.parametrize("name", scorecards.names())
def test_scorecard_is_of_the_table_that_is_there(name: str) -> None:
    cases = [case for case in conformance_cases(get_backend(name)) if isinstance(case, RowCase)]
    counted: dict[tuple[str, str], int] = {}
    for case in cases:
        key = (case.plan.label, case.mode.value)
        counted[key] = counted.get(key, 0) + 1
    card = committed(name)
    assert {(row["row"], row["mode"]): row["passed"] + row["skipped"] for row in card["rows"]} == counted
    assert card["failures"] == []


@pytest.mark.parametrize("name", ["x86", "xnnpack"])  # the others need a device
def test_lowered_architectures_agree(name: str) -> None:
    found = {entry["lowered"] for entry in committed(name)["architectures"]}
    assert found <= {"agrees", "nothing quantized"}
