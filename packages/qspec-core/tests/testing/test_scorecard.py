"""The scorecard of a generated device, and of one with a mistake."""

import json
from pathlib import Path
from xml.etree import ElementTree

import pytest
from generated_device import generated

from qspec_core.testing import ARCHITECTURES, Scorecard, conformance_cases, scorecard

FEW = {name: ARCHITECTURES[name] for name in ("perceptron", "unet")}
GREEN, RED = "#2e7d32", "#c62828"


@pytest.fixture
def path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder for a package; what the test puts on the path is taken off again."""
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path / "package"


def colors(card: Scorecard) -> set[str]:
    return {element.attrib["fill"] for element in ElementTree.fromstring(card.to_svg()) if "fill" in element.attrib}


def test_a_correct_device_has_no_failures(path: Path) -> None:
    seen: list[str] = []
    card = scorecard(generated("scored", path), architectures=FEW, progress=seen.append)
    assert card.failures == ()
    assert {(row.row, row.mode, row.passed) for row in card.rows} == {
        *(("linear", "static", 2), ("linear + relu", "static", 2)),
        *(("add", "static", 1), ("add + relu", "static", 1)),
    }
    assert set(card.general.values()) == {"passed"}
    (perceptron, unet) = card.architectures
    assert (perceptron.quantized_layers, perceptron.layers, perceptron.lowered) == (3, 3, "agrees")
    assert (unet.quantized, unet.lowered) == (0, "nothing quantized")
    assert "linear + relu, static" in seen
    assert "perceptron, static" in seen
    assert json.loads(card.to_json())["failures"] == []
    assert GREEN in colors(card)
    assert "0 failures" in str(card)


def test_a_mistake_is_on_the_card(path: Path) -> None:
    edit = ("_kernels.py", "torch.round(values / scale)", "torch.round(values * 1.1 / scale)")
    backend = generated("scored_wrong", path, edit=edit)
    card = scorecard(backend, architectures=FEW)
    assert "linear, static: gain" in card.failures
    assert "perceptron, static: diverges" in card.failures
    assert RED in colors(card)
    assert "FAILED: gain" in str(card)


def test_cases_may_be_chosen(path: Path) -> None:
    backend = generated("scored_in_part", path)
    cases = [case for case in conformance_cases(backend) if "table" in str(case)]
    card = scorecard(backend, cases=cases, architectures={})
    assert (card.rows, card.architectures, len(card.general)) == ((), (), 5)
