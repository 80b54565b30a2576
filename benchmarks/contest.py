"""The coordinator's side of a contest: one process per contender, each told in turn what to do.

A contender runs alone in its process, so that no thread pool, allocator or patched library of another touches it. Turns
are short and go round, so that what else the machine does falls on all contenders alike.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.status import Status

__all__ = ["ROOT", "Contender", "Contest", "Failed", "Steps", "pin_to_cores", "write_json"]

ROOT = Path(__file__).resolve().parent.parent
sys.path.append(str(ROOT))  # so that scripts here import `examples`, whose model, pictures and measures they share
SETTLE_S = 0.2  # between turns: the thread pool that just ran spins on for a while


class Failed(Exception):
    """A contender could not do what it was told; the message is the last line of its traceback."""


def pin_to_cores(count: int) -> list[int]:
    """Let this process and those it starts run on the first `count` cores that it may use, where the system can."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    return cores


@dataclass
class Contender:
    """A process of this interpreter that serves one contender.

    Args:
        name: what the table calls it.
        command: script and arguments.
        environment: variables added to those of this process.
        folder: where its log goes.
    """

    name: str
    command: Sequence[str]
    environment: Mapping[str, str]
    folder: Path
    problem: str = ""
    times: dict[str, list[float]] = field(default_factory=dict)
    _process: subprocess.Popen[str] | None = None

    def ask(self, **message: Any) -> dict[str, Any]:  # JSON either way
        """Send a message and wait for the answer.

        Raises: Failed: it raised, or its process ended.
        """
        process = self._running()
        if process.stdin is None or process.stdout is None:
            raise Failed("no pipes")
        try:
            process.stdin.write(json.dumps(message) + "\n")
            process.stdin.flush()
            line = process.stdout.readline()
        except BrokenPipeError:
            line = ""
        if not line:
            raise Failed(f"the process ended with code {process.wait()}; log: {self.log}")
        answer: dict[str, Any] = json.loads(line)
        if "problem" in answer:
            raise Failed(answer["problem"])
        return answer

    def attempt(self, **message: Any) -> dict[str, Any] | None:  # as `ask`
        """`ask`, or None with the problem kept and the process ended; nothing more is asked of it then."""
        if self.problem:
            return None
        try:
            return self.ask(**message)
        except Failed as failure:
            self.problem = str(failure)
            self.end()
            return None

    @property
    def log(self) -> Path:
        """What the contender's libraries print."""
        return self.folder / f"{self.name.replace(' ', '-').replace('/', '-')}.log"

    def _running(self) -> subprocess.Popen[str]:
        if self._process is None:
            paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
            environment = {**os.environ, **self.environment, "PYTHONPATH": os.pathsep.join(paths)}
            with self.log.open("w") as log:
                self._process = subprocess.Popen(
                    [sys.executable, *self.command],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    stderr=log,
                    text=True,
                    env=environment,
                )
        return self._process

    def end(self) -> None:
        """Close its input, which ends its loop; end the process if that does not."""
        if self._process is None:
            return
        if self._process.stdin is not None:
            self._process.stdin.close()
        try:
            self._process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Steps:
    """Says what is being done: beside a spinner, or line by line where the output is no terminal."""

    def __init__(self, console: Console, status: Status) -> None:
        self._console, self._status, self._start = console, status, time.perf_counter()

    def say(self, step: str) -> None:
        """Show a step as it begins."""
        if self._console.is_terminal:
            self._status.update(step)
        else:
            self._console.print(f"{time.perf_counter() - self._start:6.0f} s  {step}", highlight=False)


class Contest:
    """All contenders of one run, and the folder that they share.

    Args:
        environment: variables that every contender gets.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.contenders: list[Contender] = []
        self._folder = tempfile.TemporaryDirectory(prefix="qspec-benchmark-")

    @property
    def folder(self) -> Path:
        """Where logs and shared files lie while the contest lasts."""
        return Path(self._folder.name)

    def add(self, name: str, *command: str) -> Contender:
        """Enter a contender; its process starts when it is first asked something."""
        found = Contender(name, command, self.environment, self.folder)
        self.contenders.append(found)
        return found

    def turns(self, rounds: int, say: Callable[[str], None], **message: Any) -> None:  # as `Contender.ask`
        """Ask every contender in turn, `rounds` times, and keep the times that each answers, by name."""
        for index in range(rounds):
            for contender in self.contenders:
                say(f"round {index + 1} of {rounds}: {contender.name}")
                answer = contender.attempt(**message)
                for key, found in (answer or {}).items():
                    contender.times.setdefault(key, []).extend(found)
                time.sleep(SETTLE_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for contender in self.contenders:
            contender.end()
        self._folder.cleanup()


def write_json(path: Path | None, content: Mapping[str, Any]) -> None:  # whatever the benchmark found
    """Write what was found, if a path is given."""
    if path is not None:
        path.write_text(json.dumps(content, indent=2) + "\n")
