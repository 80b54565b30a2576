"""A short session of the fuzzer with a fixed seed, and proof that it finds, shrinks and prints what is wrong."""

from pathlib import Path
from typing import Any

import pytest
import torch
from fuzz.command import Finding, Session, fuzz
from fuzz.generate import for_each_network
from fuzz.networks import Case, Input, Network, Step, source_of
from fuzz.shrink import shrunk
from fuzz.trial import AGREES, Outcome, trial
from fuzz.worker import Worker
from torch import Tensor, nn

import qspec_x86

pytestmark = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning", "ignore::DeprecationWarning")
LINEAR = Step("v1", "Linear", "self.m_v1(v0)", "nn.Linear(8, 4)", ("v0",))
SEEDS = {"x86": 1, "xnnpack": 12}  # an XNNPACK program takes seconds to make: three networks that it takes
LOWER = qspec_x86.lower_eager  # tests put others in its place
NETWORK = Network(
    (Input("x0", "torch.randn(2, 8)"), Input("x1", "20.0 * torch.randn(2, 8)")),
    (
        Step("v0", "sum of two", "x0 + x1", "", ("x0", "x1")),
        LINEAR,
        Step("v2", "ReLU", "F.relu(v1)", "", ("v1",)),
        Step("v3", "tanh", "x0.tanh()", "", ("x0",)),
    ),
    ("v2", "v3"),
    "float32",
)


def drawn(count: int, first: int) -> list[Network]:
    """The networks of one seed."""
    found: list[Network] = []
    for_each_network(count, first, found.append)
    return found


def tampered(converted: torch.fx.GraphModule, target: str) -> nn.Module:
    """A lowering that gives other numbers wherever there is a linear layer."""
    lowered = LOWER(converted, target)
    is_wrong = any("linear" in str(node.target) for node in converted.graph.nodes)

    class Wrong(nn.Module):
        def forward(self, *args: Tensor) -> Any:  # whatever the network returns
            results = lowered(*args)
            return [result * 1.5 for result in results] if is_wrong else results

    return Wrong()


def test_same_seed_draws_the_same_networks() -> None:
    assert drawn(8, 3) == drawn(8, 3)
    assert drawn(8, 3) != drawn(8, 4)


def test_networks_are_varied_models() -> None:
    found = drawn(60, 0)
    assert len({step.operator for network in found for step in network.steps}) > 60
    for network in found:
        if network.steps:
            scope: dict[str, Any] = {}
            exec(source_of(network), scope)
            with torch.no_grad():
                scope["model"](*scope["inputs"])


def test_network_survives_its_way_through_data() -> None:
    case = Case(NETWORK, "x86", "eager", "static")
    assert Case.from_dict(case.to_dict()) == case


@pytest.mark.parametrize("mode", ["static", "dynamic"])
def test_printed_program_runs(mode: str) -> None:
    exec(Case(NETWORK, "x86", "eager", mode).program(), {"__name__": "program"})


def test_wrong_kernel_is_found_and_shrunk(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(NETWORK, "x86", "eager", "static")
    assert trial(case).status == AGREES
    monkeypatch.setattr(qspec_x86, "lower_eager", tampered)
    outcome = trial(case)
    assert (outcome.is_finding, outcome.stage, outcome.kind) == (True, "lower", "diverges")
    small, _ = shrunk(case, outcome, trial, seconds=60)
    assert small.network.operators == "Linear"
    assert small.network.inputs == (Input("x0", "torch.randn(2, 8)"),)


def test_raw_error_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(converted: torch.fx.GraphModule, target: str) -> nn.Module:
        raise IndexError("list index out of range")

    monkeypatch.setattr(qspec_x86, "lower_eager", failing)
    outcome = trial(Case(NETWORK, "x86", "eager", "dynamic"))
    assert (outcome.stage, outcome.kind) == ("lower", "raw IndexError")


def test_findings_of_one_kind_are_counted_once(tmp_path: Path) -> None:
    shown: list[Finding] = []
    session = Session(("x86",), 1, found=shown.append, shrink_seconds=0)
    case = Case(NETWORK, "x86", "eager", "static")
    with Worker(tmp_path / "log") as worker:
        for number in range(3):
            session.add(case, Outcome("finding", "lower", "raw KeyError", f"node conv2d_{number}"), worker)
    assert [finding.count for finding in shown] == [3]
    assert len(session.distinct()) == 1


def test_process_that_dies_is_a_finding(tmp_path: Path) -> None:
    dying = Network(
        NETWORK.inputs[:1], (Step("v0", "exit", "__import__('os')._exit(7); x0", "", ("x0",)),), ("v0",), "float32"
    )
    with Worker(tmp_path / "log") as worker:
        assert worker.run(Case(dying, "x86", "eager", "static")).kind == "dies, exit code 7"
        assert worker.run(Case(NETWORK, "x86", "eager", "static")).status == AGREES


@pytest.mark.parametrize(("backend", "count"), [("x86", 25), ("xnnpack", 3)])
def test_short_session_finds_nothing(backend: str, count: int, tmp_path: Path) -> None:
    session = Session((backend,), count, seed=SEEDS[backend], compiled_every=0, shrink_seconds=0)
    fuzz(session, tmp_path / "log")
    assert [finding.case.program() for finding in session.distinct()] == []
    assert sum(found for key, found in session.outcomes.items() if key[3] == AGREES) >= count // 3
