"""The coordinator of a contest: one process per contender, and one turn after the other.

Each contender has its own process, so that thread pools, allocators and patched libraries of the others cannot affect
it. Turns are short and rotate, so that other load on the machine affects all contenders alike.
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
sys.path.append(str(ROOT))  # so that scripts here can import the model, the pictures and the measures from `examples`
SETTLE_S = 0.2  # between turns: the thread pool of the last contender keeps spinning for a while


class Failed(Exception):
    """A contender failed at a step; the message is the last line of its traceback."""


def pin_to_cores(count: int) -> list[int]:
    """Pin this process and its children to the first `count` cores that it may use, if the system can."""
    if not hasattr(os, "sched_setaffinity"):
        return []
    cores = sorted(os.sched_getaffinity(0))[:count]
    os.sched_setaffinity(0, cores)
    return cores


@dataclass
class Contender:
    """A process of this interpreter that serves one contender.

    Args:
        name: its name in the table.
        command: script and arguments.
        environment: variables added to those of this process.
        folder: folder of its log.
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

        Raises: Failed: the contender raised, or its process ended.
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
        """Call `ask`. On failure keep the problem, end the process and return None; later calls return None at once."""
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
        """Text that the contender's libraries printed."""
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
        """Close its input, which ends its loop; kill the process if it does not end."""
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
    """Shows the current step: beside a spinner, or line by line if the output is not a terminal."""

    def __init__(self, console: Console, status: Status) -> None:
        self._console, self._status, self._start = console, status, time.perf_counter()

    def say(self, step: str) -> None:
        """Show a step when it begins."""
        if self._console.is_terminal:
            self._status.update(step)
        else:
            self._console.print(f"{time.perf_counter() - self._start:6.0f} s  {step}", highlight=False)


class Contest:
    """All contenders of one run, and the folder that they share.

    Args:
        environment: environment variables of every contender.
    """

    def __init__(self, environment: Mapping[str, str]) -> None:
        self.environment = environment
        self.contenders: list[Contender] = []
        self._folder = tempfile.TemporaryDirectory(prefix="qspec-benchmark-")

    @property
    def folder(self) -> Path:
        """Folder of logs and shared files while the contest lasts."""
        return Path(self._folder.name)

    def add(self, name: str, *command: str) -> Contender:
        """Add a contender; its process starts with the first message."""
        found = Contender(name, command, self.environment, self.folder)
        self.contenders.append(found)
        return found

    def turns(self, rounds: int, say: Callable[[str], None], **message: Any) -> None:  # as `Contender.ask`
        """Ask every contender in turn, `rounds` times, and collect the times of each, by name."""
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
    """Write the results as JSON, if a path is given."""
    if path is not None:
        path.write_text(json.dumps(content, indent=2) + "\n")
