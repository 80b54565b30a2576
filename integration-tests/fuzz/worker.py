"""A process that runs trials, so that a crash or an endless loop ends one trial and not the session."""

import json
import os
import selectors
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from fuzz.networks import Case
from fuzz.trial import FINDING, Outcome, trial

__all__ = ["Worker", "serve"]

TIMEOUT = 240.0
_ROOT = Path(__file__).parents[1]


class Worker:
    """Client of a process that runs `serve`. The process is started when it is needed.

    Args:
        log: file that takes what the process writes to stderr.
        timeout: seconds that a trial may take.
    """

    def __init__(self, log: Path, timeout: float = TIMEOUT) -> None:
        self._log, self._timeout = log, timeout
        self._process: subprocess.Popen[str] | None = None

    def __enter__(self) -> "Worker":
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def run(self, case: Case) -> Outcome:
        """The outcome of one case; a finding if the process dies or does not answer."""
        process = self._process = self._process or self._start()
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(json.dumps(case.to_dict()) + "\n")
        process.stdin.flush()
        with selectors.DefaultSelector() as selector:
            selector.register(process.stdout, selectors.EVENT_READ)
            answered = selector.select(self._timeout)
        if not answered:
            self.stop()
            return Outcome(FINDING, "run", "hangs", f"no end in {self._timeout:.0f} s")
        line = process.stdout.readline()
        if line:
            return Outcome(**json.loads(line))
        code = process.wait()
        self._process = None
        return Outcome(FINDING, "run", f"dies, exit code {code}", "the process died; its log has the reason")

    def stop(self) -> None:
        """End the process."""
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _start(self) -> "subprocess.Popen[str]":
        path = os.pathsep.join([str(_ROOT), os.environ.get("PYTHONPATH", "")])
        threads = {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}
        with self._log.open("a") as log:
            return subprocess.Popen(
                [sys.executable, "-W", "ignore", "-c", "from fuzz.worker import serve; serve()"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONPATH": path, **threads},
            )


def serve() -> None:
    """Answer cases from stdin, one JSON object a line, until it ends. Other prints go to stderr."""
    import torch

    answers: Any = os.fdopen(os.dup(1), "w")  # a text stream
    os.dup2(2, 1)
    torch.set_num_threads(1)
    for line in sys.stdin:
        answers.write(json.dumps(asdict(trial(Case.from_dict(json.loads(line))))) + "\n")
        answers.flush()
        torch._dynamo.reset()
