"""Differential fuzzing: random networks, float against converted against lowered, on both backends.

Findings are errors that are not qspec's, refusals of what the device runs in float, results that diverge, and programs
that crash or do not end. Each is shrunk and printed as a program. The exit code is 1 if there are any.
"""

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from fuzz.generate import for_each_network
from fuzz.networks import Case, Network
from fuzz.shrink import shrunk
from fuzz.trial import AGREES, FAULTY, Outcome
from fuzz.worker import Worker
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

__all__ = ["Finding", "Session", "fuzz", "main"]

MODES = {
    "x86": ("static", "dynamic", "static", "dynamic", "static", "dynamic", "weight only"),
    "xnnpack": ("static", "static", "dynamic"),
}
FORMS = {"x86": "eager", "xnnpack": "program"}
_BATCH = 50
"""Networks that hypothesis draws for one seed."""


@dataclass
class Finding:
    """One kind of failure: the smallest case of it, and how many cases failed alike."""

    case: Case
    outcome: Outcome
    count: int = 1

    @property
    def key(self) -> tuple[str, ...]:
        return self.case.backend, self.case.form, self.case.network.operators, self.outcome.kind

    def to_dict(self) -> dict[str, Any]:
        """As data for JSON."""
        program = self.case.program()
        return {"case": self.case.to_dict(), "outcome": asdict(self.outcome), "count": self.count, "program": program}


@dataclass
class Session:
    """Request and findings of one session.

    Args:
        backends: names.
        count: number of networks.
        seed: of the first batch.
        minutes: after which no further network is tried; None for no limit.
        compiled_every: every n-th network is also compiled on x86; 0 for none.
        shrink_seconds: time for shrinking one finding.
        found: called with each new finding.
    """

    backends: tuple[str, ...]
    count: int
    seed: int = 0
    minutes: float | None = None
    compiled_every: int = 20
    shrink_seconds: float = 30.0
    found: Callable[[Finding], None] = lambda _: None
    findings: dict[tuple[str, ...], Finding] = field(default_factory=dict)
    outcomes: Counter[tuple[str, str, str, str]] = field(default_factory=Counter)
    faulty: list[tuple[float, Case]] = field(default_factory=list)
    networks: int = 0

    def cases(self, network: Network) -> Iterator[Case]:
        """One case for each backend, in modes that take turns, and the compiled form of a sample."""
        for backend in self.backends:
            modes = MODES[backend]
            mode = modes[self.networks % len(modes)]
            yield Case(network, backend, FORMS[backend], mode)
            if backend == "x86" and self.compiled_every and self.networks % self.compiled_every == 0:
                yield Case(network, backend, "compiled", "static" if self.networks % 40 else "dynamic")

    def add(self, case: Case, outcome: Outcome, worker: Worker) -> None:
        """Count an outcome. A finding of a new kind is shrunk."""
        self.outcomes[case.backend, case.form, case.mode, outcome.status] += 1
        if outcome.status == AGREES and outcome.decibels is not None and outcome.decibels < FAULTY:
            self.faulty.append((outcome.decibels, case))
        if not outcome.is_finding:
            return
        known = (case.backend, case.form, *outcome.key)
        if known not in self.findings:
            self.findings[known] = Finding(*shrunk(case, outcome, worker.run, self.shrink_seconds), count=0)
            self.found(self.findings[known])
        self.findings[known].count += 1

    def distinct(self) -> list[Finding]:
        """Findings by backend, form, operators and kind."""
        merged: dict[tuple[str, ...], Finding] = {}
        for finding in self.findings.values():
            if finding.key in merged:
                merged[finding.key].count += finding.count
            else:
                merged[finding.key] = Finding(finding.case, finding.outcome, finding.count)
        return [merged[key] for key in sorted(merged)]


def fuzz(session: Session, log: Path, step: Callable[[], None] = lambda: None) -> None:
    """Run a session. `step` is called after each network."""
    end = None if session.minutes is None else time.monotonic() + 60 * session.minutes

    def is_over() -> bool:
        return session.networks >= session.count or (end is not None and time.monotonic() > end)

    with Worker(log) as worker:

        def tried(network: Network) -> None:
            if is_over() or not network.steps:
                return
            for case in session.cases(network):
                session.add(case, worker.run(case), worker)
            session.networks += 1
            step()

        batch = 0
        while not is_over():
            for_each_network(min(_BATCH, session.count - session.networks), session.seed + batch, tried)
            batch += 1


def _counted(session: Session) -> Table:
    table = Table(title=f"{session.networks} networks")
    statuses = sorted({key[3] for key in session.outcomes})
    for column in ("backend", "form", "mode", *statuses):
        table.add_column(column)
    for row in sorted({key[:3] for key in session.outcomes}):
        table.add_row(*row, *(str(session.outcomes[(*row, status)]) for status in statuses))
    return table


def _listed(findings: list[Finding]) -> Table:
    table = Table(title="findings")
    for column in ("backend", "form", "mode", "dtype", "operators", "stage", "kind", "count"):
        table.add_column(column)
    for finding in findings:
        case, outcome = finding.case, finding.outcome
        cells = (case.backend, case.form, case.mode, case.network.dtype, case.network.operators)
        table.add_row(*cells, outcome.stage, outcome.kind, str(finding.count))
    return table


def _arguments(given_arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="fuzz-models", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--backend", choices=["all", *MODES], default="all")
    parser.add_argument("--count", type=int, default=2000, help="number of networks")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=None, help="try no further network after this time")
    parser.add_argument("--compiled-every", type=int, default=20, help="compile every n-th network on x86; 0: none")
    parser.add_argument("--json", type=Path, default=None, help="write the findings to this file, as they are found")
    return parser.parse_args(given_arguments)


def main(given_arguments: list[str] | None = None) -> None:
    """Run the command: print the findings, and exit with 1 if there are any."""
    arguments = _arguments(given_arguments)
    console = Console(width=None if Console().is_terminal else 160)
    backends = tuple(MODES) if arguments.backend == "all" else (arguments.backend,)

    def show(finding: Finding) -> None:
        said = f"{finding.case.backend} {finding.case.form}, {finding.outcome.stage}: {finding.outcome.kind}"
        console.rule(said, align="left")
        console.print(finding.outcome.problem, markup=False, highlight=False)
        console.print(finding.case.program(), markup=False, highlight=False, soft_wrap=True)
        _write(arguments.json, session)

    session = Session(
        backends, arguments.count, arguments.seed, arguments.minutes, arguments.compiled_every, found=show
    )
    log = Path(tempfile.mkdtemp(prefix="fuzz-models-")) / "log.txt"
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console) as progress:
        task = progress.add_task("networks", total=arguments.count)

        def step() -> None:
            progress.update(task, advance=1, description=f"networks, {len(session.findings)} findings")

        try:
            fuzz(session, log, step)
        except KeyboardInterrupt:
            console.print("interrupted")
    _report(console, session)
    _write(arguments.json, session)
    console.print(f"log of the runtimes: {log}")
    sys.exit(1 if session.findings else 0)


def _report(console: Console, session: Session) -> None:
    console.print(_counted(session))
    for decibels, case in sorted(session.faulty, key=lambda pair: pair[0])[:20]:
        said = f"converted at {decibels:.1f} dB: {case.backend}, {case.mode}: {case.network.operators}"
        console.print(said, markup=False, highlight=False)
    if session.findings:
        console.print(_listed(session.distinct()))
    else:
        console.print("no findings")


def _write(path: Path | None, session: Session) -> None:
    if path is not None:
        findings = [finding.to_dict() for finding in session.distinct()]
        path.write_text(json.dumps({"networks": session.networks, "findings": findings}, indent=1), encoding="utf-8")
