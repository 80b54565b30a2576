"""The contender of a contest: a loop that reads one message a line and answers each on one line."""

import json
import os
import sys
import traceback
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["serve"]

Handler = Callable[..., Mapping[str, Any]]  # takes the message's fields; JSON either way


def serve(handlers: Mapping[str, Handler]) -> None:
    """Answer messages until the input ends. Output of libraries goes to the log, not between the answers.

    Args:
        handlers: by the message's field `do`; each takes the other fields. An exception is answered as a problem.
    """
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    for line in sys.stdin:
        message = json.loads(line)
        try:
            answer = dict(handlers[message.pop("do")](**message))
        except Exception as error:  # any contender may raise anything; the coordinator goes on with the others
            traceback.print_exc()
            first = str(error).strip().partition("\n")[0]
            answer = {"problem": f"{type(error).__name__}: {first}"[:300]}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()
